"""What no client should send: it is answered with the right code, and nothing hangs."""

from __future__ import annotations

import pytest
from pamqp import body, commands, frame, header
from pamqp.base import Frame
from pamqp.commands import Basic, Queue

from tests.conformance.client import Channel, Link

_BODY = body.ContentBody(b"x")
_CONTENT = header.ContentHeader(0, 1, Basic.Properties())


async def ended_by(link: Link, data: bytes) -> tuple[str, int]:
    await link.channel()
    link.send(data)
    refusal = await link.ended()
    return (refusal.scope, refusal.code) if refusal else ("nothing", 0)


async def test_a_frame_without_its_end(link: Link) -> None:
    data = frame.marshal(Basic.Qos(), 1)[:-1] + b"\xcd"
    assert await ended_by(link, data) == ("connection", 501)


async def test_a_frame_of_an_unknown_type(link: Link) -> None:
    data = b"\x05" + frame.marshal(Basic.Qos(), 1)[1:]
    assert await ended_by(link, data) == ("connection", 501)


async def test_a_frame_beyond_the_limit(link: Link) -> None:
    assert await ended_by(link, b"\x01\x00\x01\x00\xff\xff\xff") == ("connection", 501)


async def test_a_method_that_ends_too_early(link: Link) -> None:
    data = b"\x01\x00\x01\x00\x00\x00\x05\x00\x32\x00\x0a\x00\xce"
    assert await ended_by(link, data) == ("connection", 501)


async def test_a_method_that_there_is_not_ends_the_connection(link: Link) -> None:
    await link.channel()
    link.send(b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\xff\xce")
    await link.ended()  # RabbitMQ says nothing


@pytest.mark.parametrize("content", [_CONTENT, _BODY], ids=["header", "body"])
async def test_content_that_no_method_announced(
    link: Link, content: header.ContentHeader | body.ContentBody
) -> None:
    assert await ended_by(link, frame.marshal(content, 1)) == ("connection", 505)


async def test_a_method_where_content_was_announced(link: Link) -> None:
    data = frame.marshal(Basic.Publish(), 1) + frame.marshal(Basic.Qos(), 1)
    assert await ended_by(link, data) == ("connection", 505)


async def test_a_method_where_a_body_was_announced(link: Link) -> None:
    frames = (Basic.Publish(), _CONTENT, Basic.Qos())
    data = b"".join(frame.marshal(each, 1) for each in frames)
    assert await ended_by(link, data) == ("connection", 505)


async def test_a_header_of_another_class(link: Link) -> None:
    wrong = b"\x02\x00\x01\x00\x00\x00\x0e\x00\x32" + bytes(12) + b"\xce"
    data = frame.marshal(Basic.Publish(), 1) + wrong
    assert await ended_by(link, data) == ("connection", 505)


@pytest.mark.parametrize(
    ("method", "channel", "code"),
    [
        (Basic.Qos(), 0, 504),
        (commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest"), 0, 504),
        (commands.Connection.Close(200, "", 0, 0), 1, 503),
        (Queue.DeclareOk("q", 0, 0), 1, 503),
    ],
    ids=["of a channel on 0", "of the handshake", "of the connection on 1", "of the broker"],
)
async def test_a_method_out_of_place(link: Link, method: Frame, channel: int, code: int) -> None:
    assert await ended_by(link, frame.marshal(method, channel)) == ("connection", code)


@pytest.mark.parametrize(
    "method",
    [Basic.Recover(requeue=False), Basic.Qos(prefetch_size=5)],
    ids=["recover to the same", "a prefetch in bytes"],
)
async def test_what_is_not_implemented(ch: Channel, method: Frame) -> None:
    refusal = await ch.refuses(method)
    assert (refusal.scope, refusal.code) == ("connection", 540)


async def test_frames_in_small_pieces(link: Link) -> None:
    channel = await link.channel()
    for byte in frame.marshal(Basic.Qos(prefetch_count=1), channel.number):
        link.send(bytes((byte,)))
    assert isinstance(await channel.call(Basic.Qos()), Basic.QosOk)
