"""The broker: a socket, its users and its virtual hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import quote

from evworker.broker.embedded.clock import Clock
from evworker.broker.embedded.connection import Connection
from evworker.broker.embedded.faults import Faults
from evworker.broker.embedded.queues import Queue
from evworker.broker.embedded.refusals import Code
from evworker.broker.embedded.vhost import VirtualHost

_CLOSE_TIMEOUT_S = 1.0


class EmbeddedBroker:
    """A broker in this process, for tests and for a first try. It keeps nothing.

    ``async with EmbeddedBroker() as broker: … broker.url …`` listens on 127.0.0.1, on a port that
    is free. It lives in the event loop that it was started in, and must be used from there.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        users: Mapping[str, str] | None = None,
        vhosts: Collection[str] | None = None,
    ) -> None:
        """Listens on nothing yet.

        `port` 0 is any that is free. `users` are passwords by name; guest with the password guest,
        unless told otherwise. Without `vhosts` every virtual host is there as soon as it is named.
        """
        self.users = dict(users or {"guest": "guest"})
        self.faults = Faults(self)
        self.clock = Clock()
        """By which messages expire: it can be put forward."""
        self.connections: dict[Connection, None] = {}
        self._port = port
        self._allowed = None if vhosts is None else frozenset(vhosts)
        self._vhosts: dict[str, VirtualHost] = {}
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The AMQP URL of the virtual host "/", for the first of the users."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        user, password = next(iter(self.users.items()))
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        path = "" if vhost == "/" else quote(vhost, safe="")
        return f"amqp://{login}@127.0.0.1:{self._port}/{path}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close all connections, and forget everything. May be called twice."""
        self.stop_listening()
        self.faults.close_connections(Code.CONNECTION_FORCED, "the embedded broker is closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLOSE_TIMEOUT_S
        while self.connections and loop.time() < deadline:  # noqa: ASYNC110 - they end unasked
            await asyncio.sleep(0.001)
        self.faults.drop_connections()
        for vhost in self._vhosts.values():
            vhost.close()
        self._vhosts.clear()

    def stop_listening(self) -> None:
        """Let nobody in any more. Who is in stays."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def clients(self) -> Sequence[Connection]:
        """Who is connected."""
        return [*self.connections]

    def vhost(self, name: str) -> VirtualHost | None:
        """The virtual host, if there may be one of this name."""
        if self._allowed is not None and name not in self._allowed:
            return None
        if name not in self._vhosts:
            self._vhosts[name] = VirtualHost(name, self.faults, self.clock)
        return self._vhosts[name]

    def ready(self, queue: str) -> int:
        """How many messages wait in the queues of this name."""
        return sum(len(each.ready) for each in self.queues_named(queue))

    def unsettled(self, queue: str) -> int:
        """How many messages of the queues of this name are delivered and not settled."""
        channels = (channel for client in self.connections for channel in client.channels.values())
        return sum(each.name == queue for channel in channels for each in channel.unsettled)

    def queues_named(self, name: str) -> Iterator[Queue]:
        """The queues of this name, in all virtual hosts."""
        for vhost in self._vhosts.values():
            if name in vhost.queues:
                yield vhost.queues[name]
