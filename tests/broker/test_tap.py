"""The tap: sees what goes by, and takes nothing from anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel

from evworker.broker import (
    BrokerError,
    Connection,
    InvalidTopicError,
    Publisher,
    Tapped,
    UnroutableError,
    count_messages,
    tap,
)
from tests.broker.conftest import Bind, Take
from tests.broker.events import OrderPlaced, OrderRefunded
from tests.proxy import Proxy
from tests.waiting import eventually


@asynccontextmanager
async def tapping(
    connection: Connection, publisher: Publisher, onlooker: AbstractChannel, *patterns: str
) -> AsyncIterator[AsyncGenerator[Tapped]]:
    """A tap that has begun: it has seen a first refund, for which there is no other queue."""
    await onlooker.queue_delete(f"{publisher.exchange}.unrouted")
    watching = tap(connection, publisher.exchange, [*patterns, "#.refunded"])
    async with aclosing(watching):
        first = asyncio.ensure_future(anext(watching))

        async def seen() -> bool:
            try:
                await publisher.publish(OrderRefunded(order_id="first"))
            except UnroutableError:
                return False
            return True

        await eventually(seen)
        assert (await first).topic == "orders.eu.refunded"
        yield watching


async def test_it_sees_what_matches_in_order_and_nothing_else(
    connection: Connection, publisher: Publisher, onlooker: AbstractChannel
) -> None:
    async with tapping(connection, publisher, onlooker, "orders.*") as watching:
        envelopes = [
            await publisher.publish(OrderPlaced(order_id=str(number)), headers={"n": number})
            for number in range(3)
        ]
        await publisher.publish(OrderPlaced(order_id="x"), mandatory=False)
        seen = [await anext(watching) for _ in range(4)]
    assert [one.envelope for one in seen[:3]] == envelopes
    assert [one.headers for one in seen[:3]] == [{"n": number} for number in range(3)]
    assert {one.topic for one in seen} == {"orders.placed"}


async def test_nobody_receives_less_for_it(
    connection: Connection, publisher: Publisher, onlooker: AbstractChannel, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.*")
    async with tapping(connection, publisher, onlooker, "#") as watching:
        for number in range(10):
            await publisher.publish(OrderPlaced(order_id=str(number)))
        seen = [await anext(watching) for _ in range(10)]
        arrived = await take(queue)
    assert [message.message_id for message in arrived] == [
        one.envelope and one.envelope.id for one in seen
    ]
    assert not any(message.redelivered for message in arrived)


async def test_it_leaves_nothing_behind(
    connection: Connection, publisher: Publisher, onlooker: AbstractChannel
) -> None:
    async with tapping(connection, publisher, onlooker):
        pass

    async def gone() -> bool:
        try:
            await publisher.publish(OrderRefunded(order_id="after"))
        except UnroutableError:
            return True
        return False

    await eventually(gone)


async def test_what_can_not_be_read_is_seen_too(
    connection: Connection, publisher: Publisher, onlooker: AbstractChannel
) -> None:
    async with tapping(connection, publisher, onlooker, "#") as watching:
        plain = await onlooker.get_exchange(publisher.exchange)
        await plain.publish(Message(b"\xff"), "legacy.order")
        seen = await anext(watching)
    assert (seen.topic, seen.envelope, seen.body) == ("legacy.order", None, b"\xff")


async def test_it_ends_with_an_error_when_the_connection_is_cut(
    proxy: Proxy, publisher: Publisher, onlooker: AbstractChannel
) -> None:
    async with (
        Connection(proxy.address, name="tap") as connection,
        tapping(connection, publisher, onlooker) as watching,
    ):
        waiting = asyncio.ensure_future(anext(watching))
        proxy.cut()
        with pytest.raises(BrokerError, match="the connection was lost"):
            await waiting


async def test_it_ends_with_an_error_when_it_is_cut_while_one_is_busy(
    proxy: Proxy, publisher: Publisher, onlooker: AbstractChannel
) -> None:
    async with (
        Connection(proxy.address, name="tap") as connection,
        tapping(connection, publisher, onlooker) as watching,
    ):
        for number in range(3):
            await publisher.publish(OrderRefunded(order_id=str(number)))
        await anext(watching)
        proxy.cut()
        channel = await connection.channel()  # by now it knows
        with pytest.raises(BrokerError):
            _ = [one async for one in watching]
        assert not channel.is_closed


async def test_an_exchange_that_is_not_there_is_named(connection: Connection, unique: str) -> None:
    with pytest.raises(BrokerError, match=f"no exchange '{unique}' on amqp://"):
        await anext(tap(connection, unique, ["#"]))


async def test_a_pattern_that_can_not_match_is_refused(
    connection: Connection, exchange: str
) -> None:
    with pytest.raises(InvalidTopicError, match="a wildcard must stand alone"):
        await anext(tap(connection, exchange, ["orders.pl*"]))


async def test_it_can_be_cancelled(
    connection: Connection, publisher: Publisher, onlooker: AbstractChannel
) -> None:
    async with tapping(connection, publisher, onlooker) as watching:
        waiting = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await count_messages(connection, "none") is None
