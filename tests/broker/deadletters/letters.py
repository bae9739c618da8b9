"""Letters for the tests: put by the hundred, and taken out again by a client that knows nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiormq import spec

from evworker.broker import Connection, Failure, Letter, browse_dead_letters

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A message as a test puts it somewhere."""

    id: str | None
    body: bytes = b"{}"
    failure: Failure | None = None
    headers: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    def to_properties(self) -> spec.Basic.Properties:
        headers = {**self.headers, **(self.failure.to_headers() if self.failure else {})}
        return spec.Basic.Properties(
            **{"message_id": self.id, "delivery_mode": 2, "headers": headers, **self.properties}
        )


def failed(error_type: str | None = "shop.CardDeclined", **changes: Any) -> Failure:
    return Failure(
        **{
            "reason": "failed",
            "error_type": error_type,
            "error_message": "no funds",
            "attempts": 3,
            "first_failed_at": AT,
            "failed_at": AT,
            "consumer": "billing.charge",
            "frame": "shop.billing:charge",
            "origin_exchange": "events",
            "origin_routing_key": "orders.placed",
            **changes,
        }
    )


def order(number: int, **changes: Any) -> Sent:
    """A letter whose event is bare JSON, so that its topic comes with its headers."""
    return Sent(
        **{
            "id": f"id-{number}",
            "body": b'{"order_id": "%d", "total": %d}' % (number, number),
            "failure": failed(),
            **changes,
        }
    )


async def put(connection: Connection, queue: str, letters: Iterable[Sent]) -> None:
    """All of them are there when it returns, in their order."""
    channel = await connection.channel(confirms=True)
    publishes = [
        asyncio.create_task(
            channel.basic_publish(
                letter.body,
                exchange="",
                routing_key=queue,
                properties=letter.to_properties(),
                mandatory=True,
            )
        )
        for letter in letters
    ]
    await asyncio.gather(*publishes)
    await channel.close()


async def all_in(connection: Connection, queue: str) -> list[Letter]:
    """What lies in a queue, looked at."""
    return await browse_dead_letters(connection, queue, 1_000_000)


async def ids_in(connection: Connection, queue: str) -> list[str | None]:
    return [letter.properties.message_id for letter in await all_in(connection, queue)]
