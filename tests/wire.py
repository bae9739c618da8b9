"""A wire on which single frames can be seen, changed, kept back or followed by the end.

A TCP proxy before the broker that takes both directions apart into AMQP frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from pamqp import frame
from pamqp.base import Frame

_PROTOCOL_BYTES = 8  # "AMQP" and the version, which is no frame
_HEADER_BYTES = 7  # type, channel, size; a frame ends with one byte more

Change = Callable[[int, bytes], bytes]
"""From a connection's number (the first is 1) and a frame to what passes instead of it."""


def unchanged(_connection: int, data: bytes) -> bytes:
    return data


def method_in(data: bytes) -> Frame | None:
    """The AMQP method that a frame carries, if it carries one."""
    if data[0] != 1:
        return None
    read = frame.unmarshal(data)[2]
    return read if isinstance(read, Frame) else None


def channel_of(data: bytes) -> int:
    return int.from_bytes(data[1:3])


class Wire:
    def __init__(self, broker_url: str) -> None:
        self._broker = urlsplit(broker_url)
        self.connections = 0
        """How many were made so far; a worker's first consumes, its second publishes."""
        self.from_client: Change = unchanged
        self.from_broker: Change = unchanged
        self._port = 0
        self._ends: dict[int, tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._kept: dict[int, bytearray] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        login = self._broker.netloc.rpartition("@")[0]
        return f"amqp://{login}@127.0.0.1:{self._port}{self._broker.path}"

    def cut(self) -> None:
        """Break every connection at once, without a word to either side; new ones are let in."""
        for client, broker in self._ends.values():
            client.transport.abort()
            broker.transport.abort()
        self._ends.clear()

    def stall(self) -> None:
        """Let nothing pass any more, in either direction, and close nothing either."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let it pass again, after `stall`."""
        self._flowing.set()

    def stall_at(self, kind: type[Frame]) -> asyncio.Event:
        """Stall before the next such method of a client's passes, which sets the event."""
        seen = asyncio.Event()

        def look(_connection: int, data: bytes) -> bytes:
            if isinstance(method_in(data), kind):
                self.from_client = unchanged
                self.stall()
                seen.set()
            return data

        self.from_client = look
        return seen

    def keep(self, connection: int) -> bytearray:
        """Keep back what the broker says on this connection; returns what there is of it."""
        return self._kept.setdefault(connection, bytearray())

    def hang_up(self, connection: int) -> None:
        """Say all that was kept and, in the same breath, that nothing more will come."""
        client, broker = self._ends.pop(connection)
        client.write(bytes(self._kept.pop(connection)))
        client.close()
        broker.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        self.connections += 1
        number = self.connections
        there, back = await asyncio.open_connection(self._broker.hostname, self._broker.port)
        self._ends[number] = (writer, back)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(
                self._pass_on(number, reader, back), self._pass_back(number, there, writer)
            )
        self._serving.discard(serving)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Wire]:
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0) as server:
            self._port = server.sockets[0].getsockname()[1]
            yield self
            server.close()
            self._flowing.set()
            self.cut()
            for serving in self._serving:
                serving.cancel()
            await asyncio.gather(*self._serving)

    async def _pass_on(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            sink.write(await source.readexactly(_PROTOCOL_BYTES))
            while True:
                data = await _frame_from(source)
                await self._flowing.wait()
                data = self.from_client(number, data)
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()

    async def _pass_back(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                data = await _frame_from(source)
                await self._flowing.wait()
                data = self.from_broker(number, data)
                if number in self._kept:
                    self._kept[number] += data
                    continue
                sink.write(data)
                await sink.drain()
        if number in self._ends:
            sink.close()


async def _frame_from(source: asyncio.StreamReader) -> bytes:
    header = await source.readexactly(_HEADER_BYTES)
    return header + await source.readexactly(int.from_bytes(header[3:7]) + 1)
