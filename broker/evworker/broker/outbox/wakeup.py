"""What wakes an idle relay: a commit somewhere, its own work, or the time.

On PostgreSQL, with asyncpg, `Outbox.add` notifies, and one connection listens. However many
notifications come while the relay is busy, it looks once. They are a hint and no more: PostgreSQL
keeps none for who is away, and a connection pooler may swallow them all. So the relay looks by
itself as well, each second while somebody listens and more often while nobody does.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from evworker.broker.backoff import backoff_s
from evworker.broker.database.engine import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = structlog.get_logger("evworker.relay")

CHANNEL = "evworker_outbox"

LISTENING_POLL_S = 1.0
POLL_S = 0.1

_ASK_EVERY_S = 20.0  # a connection whose other end has vanished says nothing of it
_ASK_TIMEOUT_S = 10.0


class Wakeup:
    """`run` listens for as long as it is not cancelled; `wait` works without it too."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.is_listening = False
        self._engine = engine
        self._event = asyncio.Event()
        self._is_notified = False

    @property
    def poll_s(self) -> float:
        """How long the relay may sleep without a look."""
        return LISTENING_POLL_S if self.is_listening else POLL_S

    def notify(self) -> None:
        """There is something to be claimed, as far as one can tell."""
        self._is_notified = True
        self._event.set()

    def nudge(self) -> None:
        """Something has changed: a look will tell."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for so long at most; returns whether there was a notification."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        notified, self._is_notified = self._is_notified, False
        self._event.clear()
        return notified

    async def run(self) -> None:
        """Listen, and come back whenever the connection is lost; ends only by cancellation."""
        if self._engine.dialect.driver != "asyncpg":
            return
        attempt = 0
        while True:
            try:
                await self._listen()
                attempt = 0
            except Exception as error:  # noqa: BLE001 - polling goes on, whatever it is
                log.debug("not listening", reason=str(error) or type(error).__name__)
            attempt += 1
            await asyncio.sleep(backoff_s(attempt))

    async def _listen(self) -> None:
        # A connection of its own: detached, it takes nobody's place in the pool.
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await self._engine.connect()
        listener: Any = None
        try:
            listener = await self._detached(connection)
            lost = asyncio.Event()
            listener.add_termination_listener(lambda *_: lost.set())
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                await listener.add_listener(CHANNEL, lambda *_: self.notify())
            self.is_listening = True
            self.notify()  # for what was missed
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ASK_EVERY_S):
                        await lost.wait()
                    return
                async with asyncio.timeout(_ASK_TIMEOUT_S):
                    await listener.execute("SELECT 1")
        finally:
            self.is_listening = False
            self.nudge()
            if listener is not None:
                listener.terminate()
            with suppress(Exception):
                await connection.close()

    async def _detached(self, connection: AsyncConnection) -> Any:
        def detach(inner: Connection) -> None:
            inner.detach()

        listener = (await connection.get_raw_connection()).driver_connection
        await connection.run_sync(detach)
        return listener
