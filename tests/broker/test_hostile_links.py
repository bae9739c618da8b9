"""Links that stall, end behind their last word, or lead to a broker that has changed its mind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
from aiormq import spec
from pamqp import commands, frame

from evworker.broker import (
    BrokerRefusedError,
    Connection,
    ConnectionLostError,
    Envelope,
    Publisher,
    PublishError,
    PublishTimeoutError,
    count_messages,
)
from tests.broker.conftest import Bind, Take
from tests.broker.events import Blob, OrderPlaced
from tests.waiting import eventually
from tests.wire import Wire, method_in, unchanged

LARGE = Blob(content="x" * 12_000_000)
NOT_FOR_EVER_S = 15.0


@pytest.fixture
async def wired(wire: Wire, exchange: str) -> AsyncIterator[Publisher]:
    async with Publisher(wire.url, exchange=exchange, source="tests") as opened:
        yield opened


# An end behind the last frames


async def test_publishes_whose_connection_ends_behind_a_burst_are_lost_and_not_cancelled(
    wired: Publisher, wire: Wire
) -> None:
    swallowed = 0

    def swallow(_connection: int, data: bytes) -> bytes:
        nonlocal swallowed
        swallowed += isinstance(method_in(data), commands.Basic.Publish)
        return b""

    def publish(number: int) -> asyncio.Task[Envelope]:
        return asyncio.create_task(wired.publish(OrderPlaced(order_id=str(number))))

    kept = wire.keep(1)
    publishing = []
    for number in range(100):
        size = len(kept)
        publishing.append(publish(number))
        await eventually(partial(is_longer, kept, size), "a confirm of its own for each")
    # And some that have no confirm in the burst.
    wire.from_client = swallow
    publishing += [publish(number) for number in range(5)]
    await eventually(lambda: swallowed == 5)
    wire.from_client = unchanged
    wire.hang_up(1)
    async with asyncio.timeout(NOT_FOR_EVER_S):
        results = await asyncio.gather(*publishing, return_exceptions=True)
    assert {type(result) for result in results} <= {ConnectionLostError, Envelope}
    assert any(isinstance(result, ConnectionLostError) for result in results)
    assert not any(task.cancelled() for task in publishing)
    await wired.publish(OrderPlaced(order_id="once more"))


def is_longer(kept: bytearray, size: int) -> bool:
    return len(kept) > size


# A stalled link


@pytest.mark.parametrize("from_bytes", [0, 1_000_000], ids=["before", "in the middle"])
async def test_a_large_event_on_a_stalled_link_ends_by_its_deadline(
    wired: Publisher, wire: Wire, from_bytes: int
) -> None:
    passed = 0

    def stall_then(_connection: int, data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        if passed > from_bytes:
            wire.stall()
        return data

    wire.from_client = stall_then
    async with asyncio.timeout(NOT_FOR_EVER_S):
        with pytest.raises(PublishTimeoutError):
            await wired.publish(LARGE, timeout_s=0.5)
        await wired.close()


async def test_many_large_events_at_once_end_each_by_its_own_deadline(
    wired: Publisher, wire: Wire
) -> None:
    wire.stall()
    large = Blob(content="x" * 2_000_000)
    async with asyncio.timeout(NOT_FOR_EVER_S):
        results = await asyncio.gather(
            *(wired.publish(large, timeout_s=0.5) for _ in range(20)), return_exceptions=True
        )
    assert all(isinstance(result, PublishError) for result in results)


async def test_many_large_events_at_once_leave_room_for_small_ones(
    publisher: Publisher, connection: Connection, bind: Bind
) -> None:
    blobs = await bind("blobs.*", name="blobs")
    orders = await bind("orders.*", name="orders")
    large = Blob(content="x" * 1_100_000)
    await asyncio.gather(
        *(publisher.publish(large, timeout_s=60) for _ in range(30)),
        *(publisher.publish(OrderPlaced(order_id=str(n)), timeout_s=60) for n in range(50)),
    )
    assert await count_messages(connection, blobs.name) == 30
    assert await count_messages(connection, orders.name) == 50


async def test_closing_a_publisher_on_a_stalled_link_ends(wired: Publisher, wire: Wire) -> None:
    wire.stall()
    publishing = asyncio.create_task(wired.publish(OrderPlaced(order_id="1")))
    await asyncio.sleep(0)
    async with asyncio.timeout(NOT_FOR_EVER_S):
        await wired.close()
        with pytest.raises(PublishError):
            await publishing


async def test_closing_a_publisher_on_someone_elses_stalled_connection_ends(
    wire: Wire, exchange: str
) -> None:
    async with Connection(wire.url, name="test") as connection:
        publisher = Publisher(connection, exchange=exchange)
        await publisher.open()
        wire.stall()
        async with asyncio.timeout(NOT_FOR_EVER_S):
            await publisher.close()


# A broker that lets us in no more


async def test_one_that_is_refused_for_a_time_works_again_once_it_is_taken_back(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    monkeypatch.setattr("evworker.broker.connection.REFUSAL_PATIENCE_S", 0.0)
    monkeypatch.setattr("evworker.broker.connection.LONGEST_S", 0.05)
    asked: list[int] = []

    def refuse(connection: int, data: bytes) -> bytes:
        if isinstance(method_in(data), commands.Connection.OpenOk):
            asked.append(connection)
            close = commands.Connection.Close(530, "NOT_ALLOWED - vhost is down", 10, 40)
            return frame.marshal(close, 0)
        return data

    connection = Connection(wire.url, name="test")
    async with connection, Publisher(connection, exchange=exchange) as publisher:
        await publisher.publish(OrderPlaced(order_id="1"))
        wire.from_broker = refuse
        wire.cut()
        await eventually(lambda: len(asked) >= 3, "it goes on asking")
        with pytest.raises(BrokerRefusedError, match="virtual host"):
            await connection.channel()
        with pytest.raises(BrokerRefusedError):
            await publisher.publish(OrderPlaced(order_id="2"))
        wire.from_broker = unchanged

        async def works_again() -> bool:
            try:
                await publisher.publish(OrderPlaced(order_id="3"))
            except BrokerRefusedError:
                return False
            return True

        await eventually(works_again)


async def test_a_login_that_is_refused_for_a_time_is_taken_back(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evworker.broker.connection.REFUSAL_PATIENCE_S", 0.0)
    monkeypatch.setattr("evworker.broker.connection.LONGEST_S", 0.05)
    async with Connection(wire.url, name="test") as connection:
        right = connection.address
        connection.address = replace(right, password="rotated")
        wire.cut()

        async def refused() -> bool:
            try:
                await connection.channel()
            except BrokerRefusedError:
                return True
            return False

        async def taken_back() -> bool:
            return not await refused()

        await eventually(refused)
        connection.address = right
        await eventually(taken_back)
        # And a loss after that is waited for, as the first one was.
        wire.cut()
        assert await count_messages(connection, "there is no such queue") is None


# Times that AMQP has no word for


async def test_an_event_of_long_ago_is_published_without_a_timestamp_of_amqps(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("#")
    long_ago = datetime(1960, 5, 17, tzinfo=UTC)
    await publisher.publish_envelope(
        Envelope(id="1", source="s", topic="orders.placed", time=long_ago, data=b"{}")
    )
    (message,) = await take(queue)
    assert message.timestamp is None
    read = Envelope.read(message.body, spec.Basic.Properties(content_type=message.content_type), "")
    assert read.time == long_ago
