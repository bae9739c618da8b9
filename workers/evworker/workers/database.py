"""A worker's database: waited for like the broker, and kept in order while the worker runs.

Imported only if a worker is given one, because it brings SQLAlchemy.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import exists, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import (
    BrokerError,
    BrokerRefusedError,
    DatabaseError,
    DatabaseUnreachableError,
    TopologyMismatchError,
)
from evworker.broker.backoff import backoff_s
from evworker.broker.cancellation import cancel_all
from evworker.broker.database.engine import address_of, database_errors, open_engine
from evworker.broker.database.schema import check_tables
from evworker.broker.database.tables import outbox
from evworker.broker.outbox.relay import Relay
from evworker.workers.inbox import Inbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evworker.broker import Connection
    from evworker.workers.consumer import Consumer

log = structlog.get_logger("evworker.database")

_PRUNE_INTERVAL_S = 3_600.0
_CLOSE_PATIENCE_S = 5.0

_SPARE_CONNECTIONS = 8
"""For the relay and what wakes it, for pruning, and for a message of the quarantine."""

_earlier = outbox.alias("earlier")
_TO_BE_SENT = exists().where(
    outbox.c.state.in_(("ready", "claimed")),
    # What stands behind a dead or refused row of its key goes when that one does: perhaps never.
    ~exists().where(
        _earlier.c.key == outbox.c.key,
        _earlier.c.seq < outbox.c.seq,
        _earlier.c.state.in_(("dead", "waiting")),
        _earlier.c.attempts > 0,
    ),
)


class Database:
    """What a worker does with its database.

    Given a URL it opens an engine of its own, with a connection for each transaction that the
    consumers may have at once; given an engine it uses that one and leaves it open.
    """

    def __init__(
        self,
        database: str | AsyncEngine,
        consumers: Iterable[Consumer],
        *,
        window_s: float,
        broker: Connection,
        exchange: str,
        relay: bool,
    ) -> None:
        """Raises DatabaseUrlError."""
        self._owns_engine = isinstance(database, str)
        at_once = sum(consumer.concurrency for consumer in consumers if consumer.transactional)
        self._is_transactional = at_once > 0
        self._engine = (
            open_engine(database, connections=at_once + _SPARE_CONNECTIONS)
            if isinstance(database, str)
            else database
        )
        self.inbox = Inbox(self._engine, window_s=window_s)
        self._relay = Relay(self._engine, broker, exchange=exchange) if relay else None
        self._closing = False
        self._upkeep: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Wait until the database is there, with our tables in it.

        Raises DatabaseRefusedError, SchemaError and, where transactional consumers would have no
        transactions, TransactionError: waiting can't mend them.
        """
        attempt = 0
        while True:
            try:
                await check_tables(self._engine)
                if self._is_transactional:
                    await self.inbox.check()
            except DatabaseUnreachableError as error:
                attempt += 1
                log.warning("no database, trying again", error=str(error), attempt=attempt)
                await asyncio.sleep(backoff_s(attempt))
            else:
                log.debug("database found", database=address_of(self._engine))
                return

    def start(self) -> asyncio.Task[None]:
        """Prune the inbox and relay the outbox until closed; the task raises what ends a relay."""
        self._upkeep = asyncio.create_task(self._run(), name="evworker database")
        return self._upkeep

    async def _run(self) -> None:
        pruning = asyncio.create_task(self._prune())
        try:
            if self._relay is None:
                await pruning
            else:
                await self._keep_relaying(self._relay)
        finally:
            await cancel_all(pruning)

    async def _keep_relaying(self, relay: Relay) -> None:
        """Once it runs it waits for whoever is away; one of them may be when it begins."""
        attempt = 0
        while not self._closing:
            try:
                await relay.run()
            except (BrokerRefusedError, TopologyMismatchError):
                raise
            except (BrokerError, DatabaseUnreachableError) as error:
                attempt += 1
                log.warning("can't relay, trying again", error=str(error), attempt=attempt)
                await asyncio.sleep(backoff_s(attempt))

    async def _prune(self) -> None:
        while True:
            try:
                pruned = await self.inbox.prune()
                log.debug("inbox pruned", rows=pruned)
            except (DatabaseError, SQLAlchemyError) as error:  # a deadlock, say
                log.warning("can't prune the inbox, trying again in an hour", error=str(error))
            await asyncio.sleep(_PRUNE_INTERVAL_S)

    def wake_relay(self) -> None:
        """Have what was just committed to the outbox sent now, if it is relayed here."""
        if self._relay is not None:
            self._relay.wake()

    async def is_relayed(self) -> bool:
        """Whether nothing is left in the outbox that a relay could publish now.

        True without a relay. Raises a DatabaseError.
        """
        if self._relay is None:
            return True
        with database_errors(self._engine, "look into the outbox"):
            async with self._engine.connect() as connection:
                return not await connection.scalar(select(_TO_BE_SENT))

    async def close(self) -> None:
        """Have the relay release what it has claimed, and close the connections opened here."""
        self._closing = True
        if self._upkeep is not None:
            if self._relay is not None:
                self._relay.stop()
                await asyncio.wait([self._upkeep], timeout=_CLOSE_PATIENCE_S)
            await cancel_all(self._upkeep)
        if self._owns_engine:
            with suppress(Exception):  # of a driver whose connections are broken
                async with asyncio.timeout(_CLOSE_PATIENCE_S):
                    await self._engine.dispose()
