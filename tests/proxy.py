"""A TCP proxy before a broker or a database: a network to cut, to freeze, or not to have yet.

It knows nothing of what it passes on. `tests/wire.py` takes AMQP apart, and the embedded broker
does what a broker would have to do by itself.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from evworker.broker import BrokerAddress

_PORTS = {"amqp": 5672, "postgresql": 5432, "mysql": 3306, "mariadb": 3306}


class Proxy:
    """Listens on a port of its own, which is known before anything listens there."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or _PORTS[parts.scheme])
        self._tls = tls
        with socket.socket() as placeholder:
            placeholder.bind(("127.0.0.1", 0))
            self.port: int = placeholder.getsockname()[1]
        login = parts.netloc.rpartition("@")[0]
        scheme = parts.scheme if tls is None else "amqps"
        self.url = f"{scheme}://{login}@127.0.0.1:{self.port}{parts.path}"
        self.connections = 0
        """How many there have been; a worker's first consumes, its second publishes."""
        self.held = 0
        """How many pieces have been kept back since it froze."""
        self._lost_after = b""
        self._asked: asyncio.StreamReader | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing: dict[int, asyncio.Event] = {}
        self._lets_newcomers_pass = True

    @property
    def address(self) -> BrokerAddress:
        """The broker's address, by way of this proxy."""
        return BrokerAddress.parse(self.url)

    async def open(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )

    def cut(self) -> None:
        """Break every connection at once, as a failing network does; new ones are let in."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def freeze(self, connection: int | None = None) -> None:
        """Let nothing pass any more, and close nothing either: on one connection, or on all."""
        self.held = 0
        self._lets_newcomers_pass = connection is not None
        for number, flowing in self._flowing.items():
            if connection in (None, number):
                flowing.clear()

    def loses_answers_to(self, request: bytes) -> None:
        """Let the next request that holds this pass, and break all connections before an answer."""
        self._lost_after = request

    def thaw(self) -> None:
        self._lets_newcomers_pass = True
        for flowing in self._flowing.values():
            flowing.set()

    def refuse(self) -> None:
        """Listen no more; connections that exist stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        self.refuse()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        flowing = self._flowing[self.connections] = asyncio.Event()
        if self._lets_newcomers_pass:
            flowing.set()
        there, back = await asyncio.open_connection(*self._target)
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            pump = asyncio.create_task(self._pump(source, sink, flowing))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(65_536):
                self.held += not flowing.is_set()
                await flowing.wait()
                if self._asked is not None and self._asked is not source:
                    self._asked = None
                    self.cut()
                    break
                if self._lost_after and self._lost_after in chunk:
                    self._lost_after, self._asked = b"", source
                sink.write(chunk)
                await sink.drain()
        self._writers.discard(sink)
        sink.close()


@asynccontextmanager
async def listening(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(url, tls)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
