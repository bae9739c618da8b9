"""Hundreds of publishes on one channel at once: each has its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aio_pika.abc import AbstractChannel
from aiormq import spec
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from evworker.broker import (
    Connection,
    ConnectionLostError,
    Publisher,
    PublishTimeoutError,
    UnroutableError,
    count_messages,
)
from evworker.broker.fastlane.switch import VARIABLE
from tests.broker.conftest import Bind, Take
from tests.broker.events import Blob, OrderPlaced
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.wire import Wire, channel_of, method_in, unchanged


@pytest.fixture
async def wired(wire: Wire, exchange: str) -> AsyncIterator[Publisher]:
    async with Publisher(wire.url, exchange=exchange, source="tests") as opened:
        yield opened


async def send(publisher: Publisher, body: bytes, to: str, id: str = "same") -> None:
    await publisher.send(
        body,
        spec.Basic.Properties(message_id=id),
        exchange=publisher.exchange,
        routing_key=to,
        timeout_s=60,  # aiormq sends those of one id one after the other
    )


@pytest.mark.parametrize("second", ["unroutable", "routable"])
async def test_two_that_differ_by_their_topic_alone_keep_their_own_results(
    publisher: Publisher,
    onlooker: AbstractChannel,
    bind: Bind,
    take: Take,
    exchange: str,
    second: str,
) -> None:
    await onlooker.queue_delete(f"{exchange}.unrouted")
    queue = await bind("routable", queue_type="quorum")
    topics = ["routable", "unroutable"] if second == "unroutable" else ["unroutable", "routable"]
    for _ in range(20):
        results = await asyncio.gather(
            *(send(publisher, b"{}", topic) for topic in topics * 3), return_exceptions=True
        )
        assert [isinstance(one, UnroutableError) for one in results] == [
            topic == "unroutable" for topic in topics * 3
        ]
    assert len(await take(queue)) == 60


async def test_each_keeps_its_own_result_among_hundreds_of_one_id(
    publisher: Publisher, onlooker: AbstractChannel, bind: Bind, take: Take, exchange: str
) -> None:
    await onlooker.queue_delete(f"{exchange}.unrouted")
    queue = await bind("*.kept", queue_type="quorum")
    topics = [f"t{n}.{'kept' if n % 3 else 'lost'}" for n in range(600)]
    results = await asyncio.gather(
        *(send(publisher, topic.encode(), topic) for topic in topics), return_exceptions=True
    )
    for topic, result in zip(topics, results, strict=True):
        assert isinstance(result, UnroutableError) == topic.endswith("lost"), topic
    assert len(await take(queue)) == 400


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 262_128, 1_000_000])
async def test_bodies_that_fill_their_frames_arrive_whole(
    publisher: Publisher, bind: Bind, take: Take, size: int
) -> None:
    queue = await bind("#")
    body = bytes(range(256)) * (size // 256 + 1)
    await asyncio.gather(*(send(publisher, body[:size], "a", str(n)) for n in range(3)))
    assert [message.body == body[:size] for message in await take(queue)] == [True] * 3


async def test_a_link_that_stalls_holds_back_what_is_not_sent_yet(
    wired: Publisher, wire: Wire, publisher: Publisher, connection: Connection, bind: Bind
) -> None:
    queue = await bind("blobs.*")
    wire.stall()
    blob = Blob(content="x" * 100_000)
    publishing = [asyncio.create_task(wired.publish(blob, timeout_s=60)) for _ in range(300)]
    written = 0

    async def stands_still() -> bool:
        nonlocal written
        before, written = written, waiting_to_be_written(wired)
        return before == written

    await eventually(stands_still)
    assert written < 2_000_000
    wire.flow()
    await asyncio.gather(*publishing)
    assert await count_messages(connection, queue.name) == 300


async def test_what_a_link_that_stalls_has_never_let_go_is_known_not_to_be_sent(
    wire: Wire, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")  # aiormq does not tell
    blob = Blob(content="x" * 100_000)
    async with Publisher(wire.url, exchange=exchange) as wired:
        wire.stall()
        ended = await asyncio.gather(
            *(wired.publish(blob, timeout_s=0.5) for _ in range(300)), return_exceptions=True
        )
        wire.flow()
    assert all(isinstance(error, PublishTimeoutError) for error in ended)
    unsent = [str(error) for error in ended if "not sent" in str(error)]
    assert 0 < len(unsent) < 300
    assert all("does not keep up for 0.5 s" in text for text in unsent)
    assert not any("may have it" in text for text in unsent)


def waiting_to_be_written(publisher: Publisher) -> int:
    tap = publisher._connection._tap  # noqa: SLF001 - what lies in this process, not in the socket
    if tap is None:
        return 0  # aiormq's queue has ten places
    assert tap._socket is not None  # noqa: SLF001
    return tap._socket.get_write_buffer_size() + sum(map(len, tap._out))  # noqa: SLF001


async def test_nothing_is_written_on_a_channel_that_the_broker_has_closed(
    publisher: Publisher,
    proxy: Proxy,
    unique: str,
    exchange: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It would close the whole connection, and with it whatever else is on it; aiormq does that.
    monkeypatch.setenv(VARIABLE, "1")
    async with (
        Connection(proxy.address, name="test") as shared,
        Publisher(shared, exchange=exchange) as one,
        Publisher(shared, exchange=exchange) as other,
    ):

        async def go_on(number: int) -> None:
            for _ in range(30):
                try:
                    await one.publish(OrderPlaced(order_id=str(number)))
                except ConnectionLostError:
                    await asyncio.sleep(0)

        async def break_it() -> None:
            for number in range(5):
                with pytest.raises((UnroutableError, ConnectionLostError)):
                    await one.send(
                        b"{}",
                        spec.Basic.Properties(message_id=str(number)),
                        exchange=f"{unique}.missing",
                        routing_key="a",
                    )

        async def innocent() -> None:
            for number in range(100):
                await other.publish(OrderPlaced(order_id=str(number)))

        await asyncio.gather(break_it(), innocent(), *(go_on(number) for number in range(20)))
        assert proxy.connections == 1


async def test_what_comes_back_and_was_never_published_ends_the_connection(
    wire: Wire, publisher: Publisher, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The ack behind it would pass for the confirm of what nothing has taken.
    monkeypatch.setenv(VARIABLE, "1")

    def return_it_first(_connection: int, data: bytes) -> bytes:
        if not isinstance(method_in(data), commands.Basic.Ack):
            return data
        returned = commands.Basic.Return(312, "NO_ROUTE", exchange, "orders.placed")
        header = ContentHeader(0, 2, commands.Basic.Properties(message_id="another"))
        number = channel_of(data)
        whole = [frame.marshal(one, number) for one in (returned, header, ContentBody(b"{}"))]
        return b"".join(whole) + data

    async with Publisher(wire.url, exchange=exchange) as wired:
        wire.from_broker = return_it_first
        with pytest.raises(ConnectionLostError, match="not published here"):
            await wired.publish(OrderPlaced(order_id="1"))
        wire.from_broker = unchanged
        await wired.publish(OrderPlaced(order_id="2"))
    assert wire.connections == 2
