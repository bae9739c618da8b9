"""A byte stream taken apart: nothing is lost, changed or put in another order."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header

from evworker.broker.fastlane.frames import (
    BASIC_ACK,
    BASIC_DELIVER,
    FRAME_END,
    HEADER,
    FrameError,
    FrameReader,
)
from tests.unit.broker.fastlane.streams import (
    ALSO_TAPPED,
    TAPPED,
    Happening,
    Sent,
    cuts,
    pieces_of,
    streams,
)

FRAME_MAX = 131_072


class Log:
    """All that a reader does, in order; what it hands on is put together."""

    def __init__(self) -> None:
        self.happened: list[Any] = []

    def hand_on(self, data: bytes) -> None:
        if self.happened and isinstance(self.happened[-1], bytes):
            self.happened[-1] += data
        else:
            self.happened.append(data)

    @property
    def handed_on(self) -> bytes:
        return b"".join(some for some in self.happened if isinstance(some, bytes))

    @property
    def told(self) -> list[Happening]:
        return [some for some in self.happened if not isinstance(some, bytes)]


class LoggedTap:
    contents = frozenset((BASIC_DELIVER,))
    methods = frozenset((BASIC_ACK,))

    def __init__(self, channel: int, log: Log) -> None:
        self._channel = channel
        self._log = log

    def content(self, index: int, method: bytes, header: bytes, body: bytes) -> None:
        assert index == BASIC_DELIVER
        self._log.happened.append((self._channel, "content", method, header, body))

    def method(self, index: int, arguments: bytes) -> None:
        self._log.happened.append((self._channel, "method", index, arguments))

    def closed(self) -> None:
        self._log.happened.append((self._channel, "closed"))


def reading(*, largest: int | None = FRAME_MAX) -> tuple[FrameReader, Log]:
    log = Log()
    reader = FrameReader(log.hand_on)
    if largest is not None:
        reader.expect_frames(largest)
        for channel in (TAPPED, ALSO_TAPPED):
            reader.tap(channel, LoggedTap(channel, log))
    return reader, log


def expected(stream: list[Sent]) -> list[Any]:
    log, tapped = Log(), {TAPPED, ALSO_TAPPED}
    for sent in stream:
        is_tapped = sent.channel in tapped
        if is_tapped and sent.told is not None:
            log.happened.append(sent.told)
        if not (is_tapped and sent.taken):
            log.hand_on(sent.data)
        if is_tapped and sent.ends:
            tapped.remove(sent.channel)
    return log.happened


@given(streams(), cuts)
def test_however_a_stream_is_cut_all_of_it_goes_where_it_belongs(
    stream: list[Sent], where: list[int]
) -> None:
    data = b"".join(sent.data for sent in stream)
    reader, log = reading()
    for piece in pieces_of(data, where):
        reader.feed(piece)
    assert log.happened == expected(stream)


@given(streams())
def test_byte_by_byte_it_is_the_same(stream: list[Sent]) -> None:
    reader, log = reading()
    for number in b"".join(sent.data for sent in stream):
        reader.feed(bytes((number,)))
    assert log.happened == expected(stream)


@given(streams(), cuts, st.integers(0))
def test_of_a_stream_that_breaks_off_the_begun_frame_is_handed_on(
    stream: list[Sent], where: list[int], length: int
) -> None:
    data = b"".join(sent.data for sent in stream)
    length %= len(data) + 1
    whole, used = [], 0
    for sent in stream:
        if used + len(sent.data) > length:
            break
        whole.append(sent)
        used += len(sent.data)
    reader, log = reading()
    for piece in pieces_of(data[:length], where):
        reader.feed(piece)
    reader.end()
    told = Log()
    told.happened = expected(whole)
    if used < length:
        told.hand_on(data[used:length])
    assert log.happened == told.happened


def test_a_body_of_hundreds_of_frames_takes_no_more_memory_than_it_has_to() -> None:
    size, frame_size = 100_000_000, FRAME_MAX - 8
    deliver = commands.Basic.Deliver("c", 1, False, "x", "y")
    piece = bytes(frame_size)
    whole, rest = divmod(size, frame_size)
    frames = [frame.marshal(deliver, TAPPED), frame.marshal(header.ContentHeader(0, size), TAPPED)]
    frames += [frame.marshal(body.ContentBody(piece), TAPPED)] * whole
    frames += [frame.marshal(body.ContentBody(bytes(rest)), TAPPED)]
    data, at, reader = b"".join(frames), 0, None
    del frames
    reader, log = reading()
    tracemalloc.start()
    while at < len(data):  # in pieces such as a socket gives
        reader.feed(data[at : at + 65_536])
        at += 65_536
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ((_, _, _, _, content),) = log.happened
    assert len(content) == size
    assert peak < 2.2 * size


# What is no stream of frames


@pytest.mark.parametrize("largest", [FRAME_MAX, None], ids=["later", "in the handshake"])
@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n", b"AMQP\x00\x00\x09\x01", b"\x08\x00\x00\x00\x00\x00\x00\xcd"],
    ids=["http", "another version", "a wrong end"],
)
def test_garbage_is_an_error_unless_hands_are_being_shaken(
    garbage: bytes, largest: int | None
) -> None:
    before = frame.marshal(commands.Connection.Unblocked(), 0)
    reader, log = reading(largest=largest)
    if largest is None:
        reader.feed(before + garbage)
        reader.feed(b"more")
        assert log.happened == [before + garbage + b"more"]
    else:
        with pytest.raises(FrameError, match="no AMQP frame"):
            reader.feed(before + garbage)
        assert log.happened == [before]


def test_a_frame_that_is_larger_than_agreed_upon_is_an_error_before_it_is_there() -> None:
    reader, _ = reading()
    reader.feed(frame.marshal(body.ContentBody(bytes(FRAME_MAX - 8)), 2))
    with pytest.raises(FrameError, match="with 131065 bytes"):
        reader.feed(frame.marshal(body.ContentBody(bytes(FRAME_MAX - 7)), 2)[:7])


def test_headers_to_which_the_broker_has_added_may_be_larger_than_agreed_upon() -> None:
    reader, log = reading()
    properties = commands.Basic.Properties(headers={"h": "x" * FRAME_MAX})
    head = frame.marshal(header.ContentHeader(0, 0, properties), TAPPED)
    reader.feed(frame.marshal(commands.Basic.Deliver("c", 1, False, "x", "y"), TAPPED) + head)
    ((*_, content_header, content),) = log.happened
    assert content_header == head[7:-1]
    assert content == b""


@pytest.mark.parametrize("size", [1 << 28, (1 << 32) - 1])
def test_headers_have_a_limit_all_the_same(size: int) -> None:
    reader, _ = reading()
    with pytest.raises(FrameError, match="no AMQP frame"):
        reader.feed(bytes((HEADER, 0, 1)) + size.to_bytes(4))


DELIVER, EMPTY, TWO = (
    frame.marshal(value, TAPPED)
    for value in (
        commands.Basic.Deliver("c", 1, False, "x", "y"),
        header.ContentHeader(0, 0),
        header.ContentHeader(0, 2),
    )
)
BODY = frame.marshal(body.ContentBody(b"abc"), TAPPED)


@pytest.mark.parametrize(
    "frames",
    [
        [DELIVER, DELIVER],
        [DELIVER, BODY],
        [DELIVER, TWO, TWO],
        [DELIVER, TWO, BODY],
        [DELIVER, TWO, frame.marshal(commands.Basic.Ack(1), TAPPED)],
        [DELIVER, bytes((8, 0, TAPPED, 0, 0, 0, 0, FRAME_END))],
        [DELIVER, bytes((HEADER, 0, TAPPED, 0, 0, 0, 2, 0, 60, FRAME_END))],
        [bytes((1, 0, TAPPED, 0, 0, 0, 2, 0, 60, FRAME_END))],
    ],
)
def test_frames_in_an_order_that_amqp_does_not_have_are_an_error(frames: list[bytes]) -> None:
    reader, log = reading()
    with pytest.raises(FrameError):
        reader.feed(b"".join(frames))
    assert not log.told


# Anything at all


@given(st.lists(st.binary(max_size=60)))
def test_garbage_ends_in_an_error_or_in_nothing(pieces: list[bytes]) -> None:
    reader, _ = reading()
    feed_until_error(reader, pieces)


@given(st.lists(st.binary(max_size=60)))
def test_garbage_in_the_handshake_is_handed_on_as_it_is(pieces: list[bytes]) -> None:
    reader, log = reading(largest=None)
    for piece in pieces:
        reader.feed(piece)
    reader.end()
    assert log.handed_on == b"".join(pieces)


@given(streams(), cuts, st.data())
def test_a_changed_stream_ends_in_an_error_or_in_other_frames(
    stream: list[Sent], where: list[int], data: st.DataObject
) -> None:
    changed = bytearray(b"".join(sent.data for sent in stream))
    for _ in range(data.draw(st.integers(1, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    reader, log = reading()
    if feed_until_error(reader, pieces_of(bytes(changed), where)):
        return
    reader.end()
    # Nothing came from nowhere: what is in it was sent.
    handed_on = len(log.handed_on)
    contents = [some for some in log.told if some[1] == "content"]
    assert handed_on + sum(len(part) for some in contents for part in some[2:]) <= len(changed)


def feed_until_error(reader: FrameReader, pieces: list[bytes]) -> bool:
    for piece in pieces:
        try:
            reader.feed(piece)
        except FrameError:
            return True
    return False
