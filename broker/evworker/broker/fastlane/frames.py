"""Frames: an AMQP byte stream, in pieces of any size, taken apart. Pure: reads and writes nothing.

A frame is a type, a channel, a size, the payload and an end byte; a message is a method frame, a
header frame and as many body frames as it needs, all of one channel and in this order, with frames
of other channels in between
(https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 2.3.5 and 4.2.6).

What belongs to a channel that somebody has tapped is put together and handed to him; all other
frames are handed on as the bytes that they came as.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FRAME_END = 0xCE

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8

CHANNEL_CLOSE = 20 << 16 | 40
CHANNEL_CLOSE_OK = 20 << 16 | 41
_ENDS = (CHANNEL_CLOSE, CHANNEL_CLOSE_OK)
BASIC_PUBLISH = 60 << 16 | 40
BASIC_RETURN = 60 << 16 | 50
BASIC_DELIVER = 60 << 16 | 60
BASIC_ACK = 60 << 16 | 80
BASIC_REJECT = 60 << 16 | 90
BASIC_NACK = 60 << 16 | 120

_START = 7  # bytes of a frame before its payload
_OVERHEAD = 8  # bytes of a frame that are not its payload
_SHORTEST_HEADER = _OVERHEAD + 14
_SHORTEST_MESSAGE = _OVERHEAD + 4 + _SHORTEST_HEADER + _OVERHEAD
_KINDS = (METHOD, HEADER, BODY, HEARTBEAT)
_ANY_SIZE = 1 << 32

# Bodies are cut into frames. Headers are not, and a broker adds to them: so their frames can be
# larger than was agreed upon.
_LARGEST_HEADER = 1 << 27

_frame_start = struct.Struct(">BHI").unpack_from
_method_start = struct.Struct(">BHII").unpack_from
_header_start = struct.Struct(">BHI4xQ").unpack_from
_method_index = struct.Struct(">I").unpack_from
_body_size = struct.Struct(">Q").unpack_from


class FrameError(ConnectionError):
    """The other end does not speak AMQP, or no longer."""


class ChannelTap(Protocol):
    """Whoever has tapped a channel: all that he is told, he is told in the order of the wire."""

    contents: frozenset[int]
    """Methods with a content that he takes; they come as `content`."""
    methods: frozenset[int]
    """Methods without one that he takes; they come as `method`."""

    def content(self, index: int, method: bytes, header: bytes, body: bytes) -> None:
        """A message: the arguments of its method, its whole content header, and its body."""

    def method(self, index: int, arguments: bytes) -> None:
        """A method without a content."""

    def closed(self) -> None:
        """The channel ends: nothing may be written on it any more, and what still comes is void.

        May be told twice.
        """


class _Tapped:
    """A tapped channel, and the content that is on its way."""

    __slots__ = (
        "body",
        "contents",
        "header",
        "index",
        "is_over",
        "method",
        "methods",
        "missing",
        "tap",
    )

    def __init__(self, tap: ChannelTap) -> None:
        self.tap = tap
        self.contents = tap.contents
        self.methods = tap.methods
        self.index = 0
        """The method whose content is awaited; 0 when none is."""
        self.method = b""
        self.header = b""
        self.body: list[bytes] = []
        self.missing = -1
        """Bytes of the body that are still to come; -1 before the header."""
        self.is_over = False

    def whole(self, data: bytes, start: int, channel: int, largest: int) -> int:
        """Take the messages that lie there whole, one behind the other; where they end.

        Whole is one that is all there, in one frame of each kind and none of over `largest` bytes.
        Most are, and this takes half the time of going frame by frame, as below.
        """
        if self.index:
            return start
        contents, content = self.contents, self.tap.content
        while len(data) - start >= _SHORTEST_MESSAGE:
            kind, of_channel, size, index = _method_start(data, start)
            header = start + size + _OVERHEAD
            if (
                kind != METHOD
                or of_channel != channel
                or index not in contents
                or not 4 <= size <= largest
                or len(data) - header < _SHORTEST_HEADER + _OVERHEAD
            ):
                break
            kind, of_channel, size, missing = _header_start(data, header)
            body = header + size + _OVERHEAD
            if kind != HEADER or of_channel != channel or size < 14 or len(data) - body < _OVERHEAD:
                break
            kind, of_channel, size = _frame_start(data, body)
            end = body + size + _OVERHEAD
            if (
                kind != BODY
                or of_channel != channel
                or end > len(data)
                or size != missing
                or not 0 < size <= largest
                or not data[header - 1] == data[body - 1] == data[end - 1] == FRAME_END
            ):
                break
            content(
                index,
                data[start + _START + 4 : header - 1],
                data[header + _START : body - 1],
                data[body + _START : end - 1],
            )
            start = end
        return start

    def frame(self, kind: int, payload: bytes) -> bool:
        """Take a frame; False if it is none of his."""
        if kind == METHOD:
            return self._method(payload)
        if not self.index:
            return False  # of a content that is handed on
        if kind == HEADER:
            self._header(payload)
        elif kind == BODY:
            self._body(payload)
        else:
            raise FrameError("a heartbeat on a channel")
        return True

    def _method(self, payload: bytes) -> bool:
        if len(payload) < 4:
            raise FrameError("a method without a number")
        index = _method_index(payload)[0]
        if self.index:
            if index in _ENDS:  # the broker may give up in the middle of a message
                self.index = 0
            else:
                raise FrameError("a method in the middle of a message")
        if index in self.contents:
            self.index, self.method, self.missing = index, payload[4:], -1
            return True
        if index in self.methods:
            self.tap.method(index, payload[4:])
            return True
        if index in _ENDS:
            self.is_over = True
            self.tap.closed()
        return False

    def _header(self, payload: bytes) -> None:
        if self.missing >= 0 or len(payload) < 14:
            raise FrameError("a content header out of place, or too short")
        self.header, self.missing, self.body = payload, _body_size(payload, 4)[0], []
        if not self.missing:
            self._complete(b"")

    def _body(self, payload: bytes) -> None:
        if self.missing < len(payload):
            raise FrameError("a body before its header, or longer than that said")
        self.missing -= len(payload)
        if self.missing:
            self.body.append(payload)
        else:
            self._complete(b"".join((*self.body, payload)) if self.body else payload)

    def _complete(self, body: bytes) -> None:
        index, self.index, self.body = self.index, 0, []
        self.tap.content(index, self.method, self.header, body)


class FrameReader:
    """Takes a byte stream apart. `hand_on` is given the bytes of whole frames that nobody taps.

    Until `expect_frames` what is no frame is handed on like everything else: whoever shakes hands
    can tell best what it is that has answered.
    """

    def __init__(self, hand_on: Callable[[bytes], None]) -> None:
        self.has_taken = False
        """Whether a tap has taken frames, until somebody sets it back."""
        self._hand_on = hand_on
        self._tapped: dict[int, _Tapped] = {}
        self._begun: list[bytes] = []
        """What there is of a frame that is not whole yet."""
        self._missing = 0
        """At least so many bytes of it must come before there is more to be known."""
        self._largest = dict.fromkeys(_KINDS, _ANY_SIZE)
        self._is_shaking_hands = True
        self._is_foreign = False

    def expect_frames(self, largest: int) -> None:
        """From now on a FrameError is raised for all else, or for a frame of over `largest` bytes.

        0 stands for no limit, as it does in the handshake. Content headers may be larger.
        """
        self._is_shaking_hands = False
        if largest:
            self._largest = dict.fromkeys(_KINDS, largest - _OVERHEAD)
            self._largest[HEADER] = _LARGEST_HEADER

    def tap(self, channel: int, tap: ChannelTap) -> None:
        """Give the channel's frames that he takes to `tap`, until the channel is closed."""
        self._tapped[channel] = _Tapped(tap)

    @property
    def taps(self) -> Mapping[int, ChannelTap]:
        """By channel, until the channel is closed."""
        return {channel: tapped.tap for channel, tapped in self._tapped.items()}

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises FrameError, after which nothing can be read any more."""
        if self._begun:
            self._begun.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._begun)
            self._begun.clear()
        if self._is_foreign:
            self._hand_on(data)
            return
        try:
            self._take_apart(data)
        except FrameError:
            if not self._is_shaking_hands:
                raise
            self._is_foreign = True
            self.end()

    def end(self) -> None:
        """No more will come: hand on what is there of a frame."""
        rest = b"".join(self._begun)
        self._begun.clear()
        if rest:
            self._hand_on(rest)

    def _take_apart(self, data: bytes) -> None:  # noqa: C901 - the hottest of all loops
        offset = handed_on = 0  # what lies between the two is to be handed on
        self._missing = 1
        try:
            while len(data) - offset >= _START:
                kind, channel, size = _frame_start(data, offset)
                if size > self._largest.get(kind, -1):
                    raise FrameError(f"no AMQP frame: of type {kind}, with {size} bytes")
                end = offset + size + _OVERHEAD
                if end > len(data):
                    self._missing = end - len(data)
                    break
                if data[end - 1] != FRAME_END:
                    raise FrameError("no AMQP frame: it has no end where it should")
                tapped = self._tapped.get(channel)
                if tapped is not None:
                    if handed_on < offset:
                        self._hand_on(data[handed_on:offset])  # first, as it came first
                        handed_on = offset
                    last = tapped.whole(data, offset, channel, self._largest[BODY])
                    if last > offset:
                        self.has_taken = True
                        handed_on = end = last
                    elif tapped.frame(kind, data[offset + _START : end - 1]):
                        self.has_taken = True
                        handed_on = end
                    elif tapped.is_over:
                        del self._tapped[channel]
                offset = end
        finally:
            if handed_on < offset:
                self._hand_on(data[handed_on:offset])
            self._begun = [data[offset:]] if offset < len(data) else []
