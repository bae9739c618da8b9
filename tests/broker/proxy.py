"""A wire that can be cut: a TCP proxy in front of the broker.

It knows AMQP frames on their way back, so that a test can keep single answers from the client, or
slip in what a real broker says only when it is short of memory.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from pamqp import commands, frame
from pamqp.base import Frame

from evworker.broker import BrokerAddress

_HEADER_BYTES = 7  # type, channel, size; a frame ends with one byte more
_BASIC_ACK = commands.Basic.Ack.index.to_bytes(4)
_CHANNEL_OPENED = commands.Channel.OpenOk.index.to_bytes(4)


class Proxy:
    """Forwards connections to the broker, for as long as the test likes."""

    def __init__(self, broker: BrokerAddress, tls: ssl.SSLContext | None = None) -> None:
        self.received = bytearray()
        """All that clients have sent."""
        self.connections = 0
        """How many were made so far."""
        self.swallows_confirms = False
        self.swallows_answers = False
        """Channels open still, and whatever is asked on them gets no answer."""
        self._broker = broker
        self._tls = tls
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._transports: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> BrokerAddress:
        """The broker's address, by way of this proxy."""
        return replace(self._broker, hosts=(("127.0.0.1", self._port),), tls=self._tls is not None)

    async def listen(self) -> None:
        """Take connections, always on the same port."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, ssl=self._tls
        )
        self._port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Take no more connections; those that there are stay."""
        if self._server is not None:
            self._server.close()

    def cut(self) -> None:
        """Break all connections, without a word to either side."""
        for transport in self._transports:
            transport.transport.abort()

    def hold(self) -> None:
        """Keep everything that the broker says from the clients."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    def say(self, method: Frame) -> None:
        """Tell every client what the broker did not say."""
        for client in self._clients:
            client.write(frame.marshal(method, 0))

    async def close(self) -> None:
        self.refuse()
        self.cut()
        self.release()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        self.connections += 1
        host, port = self._broker.hosts[0]
        broker_reader, broker_writer = await asyncio.open_connection(host, port)
        self._transports |= {writer, broker_writer}
        self._clients.add(writer)
        try:
            await asyncio.gather(
                self._forward(reader, broker_writer), self._forward_back(broker_reader, writer)
            )
        finally:
            self._transports -= {writer, broker_writer}
            self._clients.discard(writer)
            self._serving.discard(serving)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                self.received += data
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def _forward_back(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while True:
                header = await source.readexactly(_HEADER_BYTES)
                rest = await source.readexactly(int.from_bytes(header[3:7]) + 1)
                await self._flowing.wait()
                if self._swallows(channel=int.from_bytes(header[1:3]), payload=rest):
                    continue
                sink.write(header + rest)
                await sink.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            sink.close()

    def _swallows(self, channel: int, payload: bytes) -> bool:
        if self.swallows_answers:
            return channel > 0 and not payload.startswith(_CHANNEL_OPENED)
        return self.swallows_confirms and payload.startswith(_BASIC_ACK)


@asynccontextmanager
async def listening(
    broker: BrokerAddress, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Proxy]:
    proxy = Proxy(broker, tls)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
