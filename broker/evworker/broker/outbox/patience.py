"""How a relay bears with a database or a broker that is away: it says so once, and waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError

from evworker.broker.backoff import backoff_s
from evworker.broker.channels import close_channel
from evworker.broker.errors import (
    BrokerError,
    BrokerRefusedError,
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    SchemaError,
    TopologyMismatchError,
)

if TYPE_CHECKING:
    from evworker.broker.connection import Connection

log = structlog.get_logger("evworker.relay")

T = TypeVar("T")

STOP_S = 5.0
"""How long a relay that was stopped waits for confirms, and for a database that is away."""

_PROBE_S = 2.0


class Patience:
    """Waits in place of one relay, until that is stopped."""

    def __init__(self, connection: Connection) -> None:
        self.is_running = False
        """Who relays one batch only is told of an error at once."""
        self.stopping = asyncio.Event()
        self.database_is_away = False
        self.broker_is_away = False
        self._connection = connection
        self._stopped_at = 0.0

    def stop(self) -> None:
        if not self.stopping.is_set():
            self._stopped_at = time.monotonic()
        self.stopping.set()

    async def until_there(self, begin: Callable[[], Awaitable[None]]) -> bool:
        """Begin, once database and broker are there; False when the relay was stopped before."""
        attempt = 0
        while not self.stopping.is_set():
            try:
                await begin()
            except (BrokerRefusedError, TopologyMismatchError):
                raise
            except (DatabaseUnreachableError, BrokerError) as error:
                if not attempt:
                    log.warning("can't begin yet, trying again", reason=str(error))
                attempt += 1
                await self.pause(backoff_s(attempt))
            else:
                return True
        return False

    async def ask(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the database answers, asked until it does."""
        attempt = 0
        while True:
            try:
                answer = await ask()
            except (SchemaError, DatabaseRefusedError):
                raise
            except (DatabaseError, DBAPIError, OSError) as error:
                # Also a deadlock, a full disk, a database that is read-only for a while: all pass.
                if not self.is_running or self.is_over():
                    raise
                if not self.database_is_away:
                    log.warning("the database fails, trying again", reason=str(error))
                self.database_is_away = True
                attempt += 1
                await self.pause(backoff_s(attempt))
            else:
                if self.database_is_away:
                    log.info("the database answers again")
                self.database_is_away = False
                return answer

    async def broker_answers(self) -> bool:
        """Ask it for a channel, which one that blocks publishing does not open either."""
        try:
            async with asyncio.timeout(_PROBE_S):
                await close_channel(await self._connection.channel())
        except BrokerRefusedError:
            raise
        except (BrokerError, TimeoutError) as error:
            self.broker_went_away(error)
            return False
        if self.broker_is_away:
            log.info("the broker answers again")
        self.broker_is_away = False
        return True

    def broker_went_away(self, error: Exception) -> None:
        """Say so, once; nothing is to be claimed until `broker_answers`."""
        if not self.broker_is_away:
            reason = str(error) or "it does not answer"
            log.warning("the broker is away; events wait in the outbox", reason=reason)
        self.broker_is_away = True

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until the relay is stopped."""
        if self.stopping.is_set():
            await asyncio.sleep(min(seconds, 0.2))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    def is_over(self) -> bool:
        """Whether a relay that was stopped has waited for long enough."""
        return self.stopping.is_set() and time.monotonic() >= self._stopped_at + STOP_S
