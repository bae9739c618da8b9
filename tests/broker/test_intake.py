"""Deliveries read off a channel, and settled on it for as long as it lives."""

from __future__ import annotations

import asyncio

import pytest
from aiormq.abc import ChannelFrame

from evworker.broker import Connection
from evworker.broker.delivery import Delivery
from evworker.broker.fastlane.switch import VARIABLE
from evworker.broker.intake import Intake
from tests.broker.deadletters.letters import order, put
from tests.conftest import Cleanup
from tests.proxy import Proxy
from tests.waiting import eventually


async def test_no_settlement_waits_for_a_connection_that_is_gone(
    proxy: Proxy,
    broker_url: str,
    unique: str,
    cleanup: Cleanup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By aiormq, that is: a tap's settlements never wait."""
    monkeypatch.setenv(VARIABLE, "0")
    queue, deliveries = cleanup.queue(unique), list[Delivery]()
    async with Connection(broker_url, name="test") as connection:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True)
        await put(connection, queue, map(order, range(40)))
    async with Connection(proxy.address, name="test") as connection:
        intake = await Intake.open(connection, queue, prefetch=40, receive=deliveries.append)
        await eventually(lambda: len(deliveries) == 40)
        nobody_empties_it: asyncio.Queue[ChannelFrame] = asyncio.Queue(10)
        channel = intake._channel  # noqa: SLF001 - the state that a writer leaves behind
        channel.write_queue = channel.connection.write_queue = nobody_empties_it  # type: ignore[attr-defined]
        settling = [asyncio.create_task(delivery.ack()) for delivery in deliveries[:20]]
        settling += [asyncio.create_task(delivery.hand_back()) for delivery in deliveries[20:]]
        await eventually(nobody_empties_it.full)
        proxy.cut()
        assert await asyncio.wait_for(asyncio.gather(*settling), 30) == [True] * 10 + [False] * 30
