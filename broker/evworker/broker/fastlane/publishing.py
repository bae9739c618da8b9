"""Publishing on the tap: many messages in one write, and their confirms straight off the wire."""

from __future__ import annotations

import asyncio
import struct
from math import inf
from typing import TYPE_CHECKING

import pamqp.frame
from aiormq import spec

from evworker.broker.fastlane.confirms import Confirms, RefusedError, ReturnedError
from evworker.broker.fastlane.content_header import decode_properties
from evworker.broker.fastlane.frames import (
    BASIC_ACK,
    BASIC_NACK,
    BASIC_RETURN,
    BODY,
    FRAME_END,
    HEADER,
    FrameError,
)

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker.fastlane.confirms import Confirm, Route
    from evworker.broker.fastlane.tap import Tap
    from evworker.broker.message import Message

_tag_and_flags = struct.Struct(">QB").unpack_from
_MULTIPLE = 1

_frame_start = struct.Struct(">BHI").pack
_end_and_start = struct.Struct(">BBHI").pack
_END = bytes((FRAME_END,))
_FRAME_OVERHEAD = 8

_ROUTES_KEPT = 1024

# What is gathered goes out when there is so much of it, and not only at the end of the turn: the
# transport can only say that the other end does not keep up once it has been given something.
_GATHERED_BYTES = 256 * 1024

# Publishes whose deadlines lie closer together than this may be answered together.
_SWEEP_S = 0.02


class TappedPublishing:
    """The publishes of one channel with confirms, on which nobody else publishes."""

    contents = frozenset((BASIC_RETURN,))
    methods = frozenset((BASIC_ACK, BASIC_NACK))

    def __init__(self, tap: Tap, channel: AbstractChannel) -> None:
        self.is_live = True
        """Whether anything can still be published here."""
        self._tap = tap
        self._channel = channel.number
        self._loop = asyncio.get_running_loop()
        self._largest = channel.connection.connection_tune.frame_max - _FRAME_OVERHEAD
        self._confirms = Confirms()
        self._routes: dict[Route, bytes] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_gathering = False
        self._sweep_at = inf
        self._sweeping: asyncio.TimerHandle | None = None
        self._closing = channel.closing
        self._closing.add_done_callback(self._end)
        tap.tap(channel.number, self)

    @property
    def is_ready(self) -> bool:
        """Whether `publish` may be called: the other end keeps up, and the channel is open."""
        return self.is_live and self._tap.is_writable

    async def ready(self) -> bool:
        """Wait until the other end keeps up; False if the channel has ended instead."""
        while self.is_live and not self._tap.is_writable:
            await self._tap.writable()
        return self.is_live

    async def ended(self) -> None:
        """Wait until the channel, whose end was seen coming, has closed."""
        await asyncio.wait([self._closing])

    def publish(self, message: Message, timeout_s: float) -> Confirm:
        """Send it at the end of this turn. The answer after `timeout_s` seconds is a TimeoutError.

        Raises ValueError, TypeError, OverflowError or struct.error, with nothing sent, for what
        AMQP can't carry.
        """
        body, route, header = message.body, message.route, message.header
        publish = self._routes.get(route) or self._encoded(route)
        size = len(body)
        confirm: Confirm = self._loop.create_future()
        deadline = self._loop.time() + timeout_s
        self._confirms.add(confirm, deadline, route, message.id, body)
        channel = self._channel
        out = self._out
        out += (publish, _frame_start(HEADER, channel, len(header)), header)
        if 0 < size <= self._largest:
            out += (_end_and_start(FRAME_END, BODY, channel, size), body, _END)
        else:
            out.append(_END)
            self._append_in_pieces(body)
        self._out_bytes += size + len(header)
        if deadline < self._sweep_at:
            self._sweep_by(deadline)
        if not self._is_gathering:
            self._is_gathering = True
            self._tap.write_gathered(self._gathered)
        if self._out_bytes > _GATHERED_BYTES and self._tap.is_writable:
            self._tap.flush()
        return confirm

    # What the tap tells

    def method(self, index: int, arguments: bytes) -> None:
        """A confirm. It counts behind our own close as well, which it crossed on its way."""
        try:
            tag, flags = _tag_and_flags(arguments)
        except struct.error as error:
            raise FrameError("a confirm that is too short") from error
        failure = None if index == BASIC_ACK else RefusedError("basic.nack")
        self._confirms.answer(tag, failure, several=bool(flags & _MULTIPLE))

    def content(self, _index: int, method: bytes, header: bytes, body: bytes) -> None:
        """A message that came back."""
        returned = spec.Basic.Return()
        try:
            returned.unmarshal(method)
        except (ValueError, LookupError, struct.error) as error:
            raise FrameError("a return that can't be read") from error
        why = ReturnedError(f"{returned.reply_code} {returned.reply_text}")
        message_id = decode_properties(header)[0].message_id or None
        exchange, routing_key = returned.exchange or "", returned.routing_key or ""
        if not self._confirms.give_back(exchange, routing_key, message_id, body, why):
            # Its ack would now pass for a confirm.
            raise FrameError(f"{exchange!r} returned {message_id!r}, which was not published here")

    def closed(self) -> None:
        """Nothing can be sent any more; what was sent is answered when the channel says why."""
        self.is_live = False

    def _end(self, closing: asyncio.Future[object]) -> None:
        self.is_live = False
        if self._sweeping is not None:
            self._sweeping.cancel()
        failure = None if closing.cancelled() else closing.exception()
        self._confirms.end(failure or asyncio.CancelledError())

    # Frames

    def _gathered(self) -> bytes:
        out, self._out = self._out, []
        self._is_gathering, self._out_bytes = False, 0
        return b"".join(out) if self.is_live else b""

    def _encoded(self, route: Route) -> bytes:
        exchange, routing_key, mandatory = route
        publish = spec.Basic.Publish(
            exchange=exchange, routing_key=routing_key, mandatory=mandatory
        )
        if len(self._routes) >= _ROUTES_KEPT:
            self._routes.clear()
        encoded = self._routes[route] = pamqp.frame.marshal(publish, self._channel)
        return encoded

    def _append_in_pieces(self, body: bytes) -> None:
        for at in range(0, len(body), self._largest):
            piece = body[at : at + self._largest]
            self._out += (_frame_start(BODY, self._channel, len(piece)), piece, _END)

    # Deadlines

    def _sweep_by(self, deadline: float) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweep_at = deadline
        self._sweeping = self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        self._sweeping, self._sweep_at = None, inf
        now = self._loop.time()
        earliest = self._confirms.expire(now, TimeoutError())
        if earliest < inf:
            self._sweep_by(max(earliest, now + _SWEEP_S))
