"""The tap: watch events go by on a queue of one's own; no consumer receives less for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiormq.exceptions

from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel, written
from evworker.broker.envelope import Envelope
from evworker.broker.errors import BrokerError, UndecodableError
from evworker.broker.topics import check_pattern

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldValue

    from evworker.broker.connection import Connection

_KEPT = 10_000  # a tap that can't keep up sees gaps; the broker's memory is not its to fill
_PREFETCH = 500


@dataclass(frozen=True, slots=True)
class Tapped:
    """One message as it went by."""

    topic: str
    envelope: Envelope | None
    """None when the body can't be read as an event."""
    body: bytes
    headers: Mapping[str, FieldValue]
    received_at: datetime


async def tap(
    connection: Connection, exchange: str, patterns: Iterable[str]
) -> AsyncGenerator[Tapped, None]:
    """Yield every event published from now on whose topic matches one of the patterns.

    The queue is exclusive and goes with the connection. While it is bound, an event that no other
    queue is bound to counts as routed, and is not kept in ``<exchange>.unrouted``: the broker can't
    tell a tap from a consumer. Ends with BrokerError when the connection is lost; raises
    InvalidTopicError, or BrokerError when there is no such exchange.
    """
    patterns = [check_pattern(pattern) for pattern in patterns]
    with broker_errors(f"tap {exchange!r}"):
        channel = await connection.channel()
        try:
            arrived = await _subscribed(channel, exchange, patterns)
            while True:
                message = await _next(arrived, channel.closing)
                ack = channel.basic_ack(message.delivery.delivery_tag, wait=False)  # type: ignore[union-attr, arg-type]
                await written(channel, ack)
                yield _read(message)
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise BrokerError(
                f"there is no exchange {exchange!r} on {connection.address}; "
                "a publisher or a worker makes it, or `evworker topology apply`"
            ) from error
        finally:
            await close_channel(channel)


async def _subscribed(
    channel: AbstractChannel, exchange: str, patterns: Iterable[str]
) -> asyncio.Queue[DeliveredMessage]:
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    declared = await channel.queue_declare(
        exclusive=True,
        auto_delete=True,
        arguments={"x-queue-type": "classic", "x-max-length": _KEPT, "x-overflow": "drop-head"},
        timeout=RPC_TIMEOUT_S,
    )
    queue = str(declared.queue)
    for pattern in patterns:
        await channel.queue_bind(queue, exchange, pattern, timeout=RPC_TIMEOUT_S)
    await channel.basic_qos(prefetch_count=_PREFETCH, timeout=RPC_TIMEOUT_S)
    await channel.basic_consume(queue, arrived.put, timeout=RPC_TIMEOUT_S)
    return arrived


async def _next(
    arrived: asyncio.Queue[DeliveredMessage], closing: asyncio.Future[Any]
) -> DeliveredMessage:
    arrival = asyncio.ensure_future(arrived.get())
    try:
        await asyncio.wait([arrival, closing], return_when=asyncio.FIRST_COMPLETED)
        if not arrival.done():
            raise BrokerError("the connection was lost; what went by meanwhile is not seen")
        return arrival.result()
    finally:
        arrival.cancel()


def _read(message: DeliveredMessage) -> Tapped:
    properties = message.header.properties
    routing_key = message.routing_key or ""
    try:
        envelope = Envelope.read(message.body, properties, routing_key)
    except UndecodableError:
        envelope = None
    return Tapped(
        topic=envelope.topic if envelope else routing_key,
        envelope=envelope,
        body=message.body,
        headers=properties.headers or {},
        received_at=datetime.now(UTC),
    )
