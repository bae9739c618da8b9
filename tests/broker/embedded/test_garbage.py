"""Whatever is sent to it, it answers as the protocol says and closes; others don't notice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, frame, header
from pamqp.commands import Basic, Exchange, Queue

from evworker.broker.embedded import EmbeddedBroker
from tests.conformance.client import PROTOCOL_HEADER, Link, connect, linked

_METHODS = sorted(commands.INDEX_MAPPING)

random_frames = st.builds(
    lambda kind, channel, payload, end: (
        bytes((kind,)) + channel.to_bytes(2) + len(payload).to_bytes(4) + payload + end
    ),
    st.sampled_from((1, 1, 1, 2, 3, 8, 9)),
    st.sampled_from((0, 1, 1, 1, 2)),
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda index, rest: index.to_bytes(4) + rest,
            st.sampled_from(_METHODS),
            st.binary(max_size=40),
        ),
        st.builds(lambda rest: b"\x00\x3c\x00\x00" + rest, st.binary(max_size=40)),
    ),
    st.sampled_from((b"\xce", b"\xce", b"\xce", b"\x00")),
)
names = st.sampled_from(("", "a", "b", "amq.topic", "amq.headers"))
tables = st.dictionaries(
    st.sampled_from(("x-message-ttl", "x-queue-type", "x-max-length", "x-priority", "CC", "k")),
    st.one_of(st.none(), st.booleans(), st.integers(-2, 300), st.text(max_size=5)),
    max_size=3,
)
methods = st.one_of(
    st.builds(Queue.Declare, queue=names, durable=st.booleans(), arguments=tables),
    st.builds(Queue.Delete, queue=names, if_empty=st.booleans()),
    st.builds(Queue.Bind, queue=names, exchange=names, routing_key=names, arguments=tables),
    st.builds(Queue.Unbind, queue=names, exchange=names, routing_key=names, arguments=tables),
    st.builds(Queue.Purge, queue=names),
    st.builds(Exchange.Declare, exchange=names, exchange_type=names, arguments=tables),
    st.builds(Exchange.Bind, destination=names, source=names, arguments=tables),
    st.builds(Exchange.Delete, exchange=names, if_unused=st.booleans()),
    st.builds(Basic.Qos, prefetch_count=st.integers(0, 3), global_=st.booleans()),
    st.builds(Basic.Consume, queue=names, consumer_tag=names, arguments=tables),
    st.builds(Basic.Cancel, consumer_tag=names),
    st.builds(Basic.Get, queue=names, no_ack=st.booleans()),
    st.builds(Basic.Ack, delivery_tag=st.integers(0, 3), multiple=st.booleans()),
    st.builds(Basic.Nack, delivery_tag=st.integers(0, 3), requeue=st.booleans()),
    st.builds(Basic.Recover, requeue=st.just(value=True)),
    st.builds(commands.Confirm.Select),
    st.builds(commands.Channel.Open),
    st.builds(commands.Channel.CloseOk),
)
publishes = st.builds(
    lambda key, headers, expiration: b"".join(
        frame.marshal(each, 1)
        for each in (
            Basic.Publish(exchange="", routing_key=key, mandatory=True),
            header.ContentHeader(
                0, 1, Basic.Properties(headers=headers, expiration=expiration or None)
            ),
            body.ContentBody(b"x"),
        )
    ),
    names,
    tables,
    st.sampled_from(("", "0", "1", "x")),
)


_PATIENCE_S = 8.0


def in_one_loop(play: Callable[[], Awaitable[Any]]) -> None:
    """Play it, and fail for what would be a traceback on stderr."""
    troubles: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
        async with asyncio.timeout(_PATIENCE_S):
            await play()

    asyncio.run(watched())
    assert not troubles


async def survives(broker: EmbeddedBroker, link: Link) -> None:
    """The link ends when asked to, and a newcomer is served."""
    with suppress(OSError):
        await link.close()
    assert link.closed.done()
    async with linked(broker.url_of("afterwards")) as other:
        channel = await (await other.channel()).confirm()
        await channel.declare("fine", durable=False, exclusive=True)
        await channel.put("fine", "m")
        assert await channel.take("fine") == ["m"]


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_garbage_instead_of_a_greeting(data: bytes) -> None:
    async def play() -> None:
        async with EmbeddedBroker() as broker:
            link = await connect(broker.url)
            link.send(data)
            link.abort()
            await survives(broker, link)

    in_one_loop(play)


@settings(deadline=None, max_examples=60)
@given(st.lists(random_frames, max_size=4))
def test_garbage_instead_of_a_handshake(frames: list[bytes]) -> None:
    async def play() -> None:
        async with EmbeddedBroker() as broker:
            link = await connect(broker.url)
            link.send(PROTOCOL_HEADER + b"".join(frames))
            await survives(broker, link)

    in_one_loop(play)


@settings(deadline=None, max_examples=100)
@given(st.lists(random_frames, max_size=8))
def test_garbage_on_an_open_connection(frames: list[bytes]) -> None:
    async def play() -> None:
        async with EmbeddedBroker() as broker, linked(broker.url) as link:
            await link.channel()
            link.send(b"".join(frames))
            await survives(broker, link)

    in_one_loop(play)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.one_of(methods.map(lambda method: frame.marshal(method, 1)), publishes), max_size=20
    ),
    st.integers(1, 200),
)
def test_any_methods_in_any_order_and_pieces(frames: list[bytes], piece: int) -> None:
    async def play() -> None:
        async with EmbeddedBroker() as broker, linked(broker.url) as link:
            await link.channel()
            data = b"".join(frames)
            link.pause()  # else it answers in the middle of a frame
            for at in range(0, len(data), piece):
                link.send(data[at : at + piece])
                await asyncio.sleep(0)
            link.resume()
            await survives(broker, link)

    in_one_loop(play)


async def test_properties_that_end_too_early(broker: EmbeddedBroker) -> None:
    async with linked(broker.url) as link:
        await link.channel()
        start = b"\x02\x00\x01\x00\x00\x00\x0f\x00\x3c\x00\x00" + bytes(8) + b"\x80\x00\x09\xce"
        link.send(frame.marshal(Basic.Publish(), 1) + start)
        refusal = await link.ended()
        assert refusal is not None
        assert refusal.code == 502


async def test_headers_that_are_no_table(broker: EmbeddedBroker) -> None:
    async with linked(broker.url) as link:
        channel = await link.channel()
        await channel.declare("q")
        table = b"\x00\x00\x00\x04\x01kS\xff"
        payload = b"\x00\x3c\x00\x00" + bytes(8) + b"\x20\x00" + table
        head = b"\x02\x00\x01" + len(payload).to_bytes(4)
        link.send(frame.marshal(Basic.Publish(routing_key="q"), 1) + head + payload + b"\xce")
        assert (await channel.refused()).code == 502


async def test_headers_that_are_no_text_are_handed_on(broker: EmbeddedBroker) -> None:
    async with linked(broker.url) as link:
        channel = await link.channel()
        letters = {"x-dead-letter-exchange": "amq.headers", "x-message-ttl": 1}
        await channel.declare("q", arguments=letters)
        await channel.declare("letters")
        await channel.bind("letters", "amq.headers")
        table = b"\x01kS\x00\x00\x00\x01\xff" + b"\x01tF\x00\x00\x00\x01\xff"
        payload = b"\x00\x3c\x00\x00" + bytes(8) + b"\x20\x00" + len(table).to_bytes(4) + table
        head = b"\x02\x00\x01" + len(payload).to_bytes(4)
        link.send(frame.marshal(Basic.Publish(routing_key="q"), 1) + head + payload + b"\xce")
        await channel.counts("letters", 1)


async def test_a_body_longer_than_was_said(broker: EmbeddedBroker) -> None:
    async with linked(broker.url) as link:
        channel = await link.channel()
        channel.send(Basic.Publish(), header.ContentHeader(0, 1, Basic.Properties()))
        channel.send(body.ContentBody(b"xxx"))
        assert (await channel.refused()).code == 501


async def test_a_message_beyond_the_limit(broker: EmbeddedBroker) -> None:
    async with linked(broker.url) as link:
        channel = await link.channel()
        size = 16 * 1024 * 1024 + 1
        channel.send(Basic.Publish(), header.ContentHeader(0, size, Basic.Properties()))
        refusal = await channel.refused()
        assert (refusal.scope, refusal.code) == ("channel", 406)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_client_that_stops_in_the_middle(broker: EmbeddedBroker, after: int) -> None:
    async with linked(broker.url) as link:
        await link.channel()
        frames = (
            frame.marshal(Basic.Publish(routing_key="q"), 1),
            frame.marshal(header.ContentHeader(0, 2, Basic.Properties()), 1),
            frame.marshal(body.ContentBody(b"x"), 1),
        )
        link.send(b"".join(frames[:after]) + b"\x01\x00")
        link.abort()
        await survives(broker, link)
