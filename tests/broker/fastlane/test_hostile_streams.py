"""What comes off the wire is not always what a broker meant to say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pamqp import body, commands, frame, header
from structlog.testing import capture_logs

from evworker.broker import Connection, count_messages
from tests.broker.fastlane.conftest import consuming, fill, publish_filling_headers
from tests.waiting import eventually
from tests.wire import Wire, channel_of, method_in, unchanged

MESSAGES = 50


def with_another_end(data: bytes) -> bytes:
    return data[:-1] + b"\xcd"


def too_large(data: bytes) -> bytes:
    return b"\x03" + data[1:3] + (1 << 20).to_bytes(4) + bytes(1 << 20) + b"\xce"


def text(_data: bytes) -> bytes:
    return b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


def twice(data: bytes) -> bytes:
    return data + data


def short(data: bytes) -> bytes:
    return b"\x01" + data[1:3] + (6).to_bytes(4) + data[7:11] + b"\x05c\xce"


def another_tag(data: bytes) -> bytes:
    at = 12 + data[11]
    return data[:at] + (2**63).to_bytes(8) + data[at + 8 :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_another_end, "no AMQP frame: it has no end where it should"),
        (too_large, "no AMQP frame: of type 3, with 1048576 bytes"),
        (text, "no AMQP frame: of type 72"),
        (twice, "a method in the middle of a message"),
        (short, "a delivery that is too short"),
        (another_tag, "delivery 9223372036854775808 behind"),
    ],
)
async def test_garbage_ends_the_connection_and_the_next_one_goes_on(
    wire: Wire,
    connection: Connection,
    queue: str,
    change: Callable[[bytes], bytes],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EVWORKER_FAST_LANE", raising=False)  # the reasons are its own
    await fill(connection, queue, MESSAGES)
    seen = 0

    def spoil_the_twentieth(_connection: int, data: bytes) -> bytes:
        nonlocal seen
        seen += isinstance(method_in(data), commands.Basic.Deliver)
        if seen != 20:
            return data
        seen += 1
        return change(data)

    wire.from_broker = spoil_the_twentieth
    with capture_logs() as logs:
        async with (
            Connection(wire.url, name="test") as spoilt,
            consuming(spoilt, queue) as consumer,
        ):
            await eventually(lambda: set(consumer.came) == set(range(MESSAGES)))
            await eventually(lambda: wire.connections == 2)
    (lost,) = (line for line in logs if line["event"] == "broker connection lost")
    assert reason in lost["reason"]
    assert await count_messages(connection, queue) == 0
    assert len(consumer.came) <= 2 * MESSAGES


@pytest.mark.parametrize("bytes_left", [3, 20, -1])
async def test_half_a_frame_and_then_the_end(
    wire: Wire, connection: Connection, queue: str, bytes_left: int
) -> None:
    async with Connection(wire.url, name="test") as halved, consuming(halved, queue) as consumer:
        await fill(connection, queue, 10)
        await eventually(lambda: len(consumer.came) == 10)
        kept = wire.keep(1)

        def halve(_connection: int, data: bytes) -> bytes:
            return data if method_in(data) is None else data[:bytes_left]

        wire.from_broker = halve
        await fill(connection, queue, 1, first=10)
        await eventually(lambda: bool(kept))
        wire.from_broker = unchanged
        wire.hang_up(1)
        await eventually(lambda: set(consumer.came) == set(range(11)))
    assert len(consumer.losses) >= 1


async def test_headers_that_the_broker_has_made_larger_than_a_frame_are_read(
    connection: Connection, queue: str, wire: Wire
) -> None:
    await publish_filling_headers(connection, queue)
    async with Connection(wire.url, name="test") as first:
        taken = await first.channel()
        await taken.basic_get(queue)
        wire.cut()  # counts as a return, in a header more

        async with consuming(first, queue) as consumer:
            await eventually(lambda: consumer.came == [1])
        assert wire.connections == 2


async def test_a_channels_stray_contents_do_not_reach_its_tap(
    wire: Wire, connection: Connection, queue: str
) -> None:
    """A message that is returned to a consuming channel, which never publishes."""
    returned = commands.Basic.Return(312, "NO_ROUTE", "x", "y")
    stray: list[int] = []

    def begin_and_return(_connection: int, data: bytes) -> bytes:
        if not isinstance(method_in(data), commands.Basic.ConsumeOk) or stray:
            return data
        stray.append(channel_of(data))
        return data + message_of(returned, channel_of(data), b"stray")

    wire.from_broker = begin_and_return
    await fill(connection, queue, MESSAGES)
    async with Connection(wire.url, name="test") as spoilt, consuming(spoilt, queue) as consumer:
        await eventually(lambda: len(consumer.came) == MESSAGES)
    assert stray


def message_of(method: commands.Basic.Return, channel: int, content: bytes) -> bytes:
    parts = (method, header.ContentHeader(0, len(content)), body.ContentBody(content))
    return b"".join(frame.marshal(part, channel) for part in parts)
