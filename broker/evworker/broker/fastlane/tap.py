"""The tap: between the socket and aiormq, it takes the hot frames of some channels for itself.

::

                 ┌─ frames of tapped channels ──► ChannelTap ─┐ frames, gathered
    socket ──► Tap                                            ├──► one write a turn of the loop
                 └─ all other bytes ──► aiormq ───────────────┘ written as they come

aiormq keeps the handshake, the heartbeats, the channels' and the connection's life, and everything
else that is rare. What it is not shown are deliveries and confirms, so that no object, no task and
no wake-up is spent on them. All that is written passes through here as well: so a tap knows the
very place in the stream behind which its channel is closed, and never writes beyond it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError

from evworker.broker.fastlane.frames import CHANNEL_CLOSE, METHOD, FrameError, FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.connection import SSLContextProvider
    from yarl import URL

    from evworker.broker.fastlane.frames import ChannelTap

_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"

# aiormq holds a connection on which it sees nothing for a dead one, after six seconds at least.
_SIGN_OF_LIFE_S = 1.0

_CLOSE_INDEX = CHANNEL_CLOSE.to_bytes(4)


class Tap(asyncio.StreamReaderProtocol):
    """One connection's tap."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._reader = reader
        self._event_loop = loop
        self._socket: asyncio.WriteTransport | None = None
        self._frames = FrameReader(self._hand_on)
        self._shown_at = 0.0
        self._out: list[bytes] = []
        self._gathering: list[Callable[[], bytes]] = []
        self._is_scheduled = False
        self._is_over = False
        self.is_writable = True
        """Whether the other end still keeps up with what is written."""
        self._resumed = asyncio.Event()

    def expect_frames(self, largest: int) -> None:
        """The handshake is over: whatever is no frame of at most `largest` bytes is an error."""
        self._frames.expect_frames(largest)

    def tap(self, channel: int, tap: ChannelTap) -> None:
        """Give the channel's hot frames to `tap` from now on, until the channel is closed."""
        if self._is_over:
            tap.closed()
            return
        self._frames.tap(channel, tap)

    # Writing

    async def writable(self) -> None:
        """Wait until the other end keeps up, or until the connection is gone."""
        while not self.is_writable:
            await self._resumed.wait()

    def write(self, frames: bytes) -> None:
        """Write whole frames at the end of this turn of the loop, all that there are in one go."""
        self._out.append(frames)
        self._schedule()

    def write_gathered(self, gather: Callable[[], bytes]) -> None:
        """The same for frames that can be made then, for all that has happened until then."""
        self._gathering.append(gather)
        self._schedule()

    def flush(self) -> None:
        """Write what has been gathered now, whether or not the other end keeps up."""
        gathering, self._gathering = self._gathering, []
        self._out += [gather() for gather in gathering]
        if self._out and self._socket is not None and not self._socket.is_closing():
            self._socket.write(b"".join(self._out))
        self._out.clear()

    def passing(self, data: bytes) -> None:
        """Hear of what aiormq is about to write, and let what was written before go first."""
        self.flush()
        if data[0] == METHOD and data[7:11] == _CLOSE_INDEX:
            tap = self._frames.taps.get(int.from_bytes(data[1:3]))
            if tap is not None:  # which still takes what crosses this on its way
                tap.closed()

    def _schedule(self) -> None:
        if not self._is_scheduled and self.is_writable:
            self._is_scheduled = True
            self._event_loop.call_soon(self._flush_scheduled)

    def _flush_scheduled(self) -> None:
        self._is_scheduled = False
        if self.is_writable:
            self.flush()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        try:
            self._frames.feed(data)
        except FrameError as error:
            # aiormq, told by its next read, ends the connection.
            self._end()
            self._reader.set_exception(error)
            return
        if self._frames.has_taken:
            self._frames.has_taken = False
            now = self._event_loop.time()
            if now - self._shown_at > _SIGN_OF_LIFE_S:
                self._hand_on(_HEARTBEAT)

    def eof_received(self) -> bool | None:
        self._frames.end()
        return super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.is_writable = False
        self._resumed.clear()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.is_writable = True
        self._resumed.set()
        if self._out or self._gathering:
            self._schedule()

    def _hand_on(self, data: bytes) -> None:
        self._shown_at = self._event_loop.time()
        super().data_received(data)

    def _end(self) -> None:
        self._is_over = True
        self._out.clear()
        self._gathering.clear()
        self.is_writable = True
        self._resumed.set()
        for tap in self._frames.taps.values():
            tap.closed()


class _Writer(asyncio.StreamWriter):
    """aiormq's writer: the tap hears of all that it writes."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        tap: Tap,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, tap, reader, loop)
        self._tap = tap

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._tap.passing(bytes(data))
        super().write(data)


class TapFactory(TransportFactory):
    """Makes aiormq's transport, with or without TLS, and keeps the tap on it."""

    def __init__(self) -> None:
        self.tap: Tap | None = None

    async def create(
        self,
        url: URL,
        **options: Any,  # what aiormq's own factories take
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises AMQPConnectionError, caused by whatever there was to cause it."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        self.tap = tap = Tap(reader, loop)
        provider: SSLContextProvider = options.pop("ssl_context_provider")
        tls = await provider.get_context() if url.scheme == "amqps" else None
        host, port = url.host or "", url.port or 0  # aiormq has seen to it that they are there
        try:
            transport, _ = await loop.create_connection(lambda: tap, host, port, ssl=tls, **options)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, _Writer(transport, tap, reader, loop)
