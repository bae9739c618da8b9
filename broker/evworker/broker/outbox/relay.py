"""The relay: takes what transactions have committed to the outbox, and gives it to the broker.

::

    claim ──► read ──► publish, await the confirms ──► settle
      ▲                                                  │
      └──── woken: a notification, a due row, or a poll ─┘

While one batch is on its way the next is claimed, so that the database and the broker both have
work. Any number of relays may run, anywhere. If one dies its rows are claimed again when the lease
is over, and published again with the same ids, in the same order per key.

A database or a broker that is away is waited for, and nobody's row is blamed for it.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.backoff import backoff_s
from evworker.broker.cancellation import cancel_all
from evworker.broker.connection import Connection
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import check_tables
from evworker.broker.durations import Duration, parse_duration
from evworker.broker.errors import (
    BrokerError,
    ConfigurationError,
    DatabaseError,
)
from evworker.broker.outbox.batch import Batch
from evworker.broker.outbox.patience import Patience
from evworker.broker.outbox.store import Claim, ClaimedRow, OutboxStore, Refusal
from evworker.broker.outbox.wakeup import Wakeup
from evworker.broker.publisher import Publisher
from evworker.broker.topology import DEFAULT_EXCHANGE

if TYPE_CHECKING:
    from types import TracebackType

    from evworker.broker.address import BrokerAddress

log = structlog.get_logger("evworker.relay")

BEAT_S = 5.0

_SETTLE_EVERY_S = 1.0
_OVERDUE_S = 10.0
_LARGEST_BATCH = 10_000
_SHORTEST_NAP_S = 0.02

_FIRST_BACK_OFF_S = 1.0
_LONGEST_BACK_OFF_S = 300.0


@dataclass(slots=True)
class Relayed:
    """What has become of rows: published; refused, to be tried again; refused for the last time."""

    sent: int = 0
    refused: int = 0
    dead: int = 0


class Relay:
    """Publishes the outbox of one database to one broker.

    ::

        relay = Relay("postgresql://localhost/shop", "amqp://localhost")
        await relay.run()

    `batch` is how many rows one claim takes, and twice that may be on their way at once. `lease` is
    how long a claim holds, 1 second to 1 hour, and so how long the rows of a relay that has died
    wait for another. `keep` keeps what was sent for that long instead of deleting it. A row that
    the broker refuses is dead once it was refused `dead_after_attempts` times, the first time at
    least `dead_after` ago. `name` is what people see, and need not be unique.
    """

    def __init__(  # noqa: PLR0913 - options, each of its own
        self,
        database: str | AsyncEngine,
        broker: str | BrokerAddress | Connection,
        *,
        exchange: str = DEFAULT_EXCHANGE,
        name: str | None = None,
        batch: int = 1_000,
        lease: Duration = "60s",
        keep: Duration | None = None,
        dead_after_attempts: int = 10,
        dead_after: Duration = "24h",
    ) -> None:
        """Connects to nothing yet; raises a ConfigurationError."""
        if not 1 <= batch <= _LARGEST_BATCH:
            raise ConfigurationError(f"batch={batch} must be between 1 and {_LARGEST_BATCH:,}")
        if dead_after_attempts < 1:
            raise ConfigurationError(f"dead_after_attempts={dead_after_attempts} must be 1 or more")
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.ready = asyncio.Event()
        """Set while the relay runs, after its first look at the tables and at the broker."""
        self.counts = Relayed()
        self._batch_size = batch
        self._dead_after_attempts = dead_after_attempts
        self._dead_after_s = parse_duration(dead_after)
        self._owns_engine = not isinstance(database, AsyncEngine)
        self._engine = database if isinstance(database, AsyncEngine) else open_engine(database)
        self._owns_connection = not isinstance(broker, Connection)
        self._connection = (
            broker
            if isinstance(broker, Connection)
            else Connection(broker, name=f"relay {self.name}")
        )
        self._publisher = Publisher(self._connection, exchange=exchange, source="evworker relay")
        self._store = OutboxStore(
            self._engine,
            name=self.name,
            lease_s=parse_duration(lease),
            keep_s=None if keep is None else parse_duration(keep),
        )
        self._wakeup = Wakeup(self._engine)
        self.wake = self._wakeup.notify  # somebody has committed events: no need to poll for them
        self._is_open = False
        self._patience = Patience(self._connection)
        self._stopping = self._patience.stopping
        self._room_made = asyncio.Event()
        self._in_flight = 0
        self._relaying: set[asyncio.Task[Relayed]] = set()
        self._batches: set[Batch] = set()
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Look at the tables, connect to the broker, and declare the exchange.

        Raises a DatabaseError, or what `Publisher.open` raises. `run` and `run_once` do this too.
        """
        if self._is_open:
            return
        try:
            await check_tables(self._engine)
            if self._owns_connection:
                await self._connection.open()
            await self._publisher.open()
        except BaseException:
            await self.close()
            raise
        self._is_open = True

    async def close(self) -> None:
        """Let go of what this relay has opened itself."""
        self._is_open = False
        await self._publisher.close()
        if self._owns_connection:
            await self._connection.close()
        if self._owns_engine:
            await self._engine.dispose()

    async def run(self) -> None:
        """Relay until `stop`; waits for a database and a broker that are not there, or go away.

        Ends with an error only if one of them refuses, or if the tables are not as they should be.
        """
        was_open = self._is_open
        self._stopping.clear()
        self._failure = None
        if not await self._patience.until_there(self.open):
            return
        self._patience.is_running = True
        beside = [asyncio.create_task(self._beat()), asyncio.create_task(self._wakeup.run())]
        try:
            self.ready.set()
            await self._claim_on_and_on()
        except (DatabaseError, DBAPIError, BrokerError) as error:
            self._fail(error)
        finally:
            self.ready.clear()
            self.stop()
            if self._relaying:
                await asyncio.wait(self._relaying)
            await cancel_all(*beside)
            with suppress(DatabaseError, DBAPIError):
                await self._store.leave()
            self._patience.is_running = False
            if not was_open:
                await self.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Publish nothing more, settle what is confirmed, give back the rest; `run` then ends."""
        self._patience.stop()
        self._room_made.set()
        self._wakeup.nudge()
        for batch in self._batches:
            batch.stop()

    async def run_once(self) -> Relayed:
        """Claim one batch, publish it, settle it; returns what came of it, maybe nothing.

        Raises instead of waiting when the database is away. A broker that is away costs nothing.
        """
        was_open = self._is_open
        self._stopping.clear()
        self._failure = None
        await self.open()
        try:
            claim = await self._store.claim(self._batch_size)
            if claim is None:
                return Relayed()
            self._in_flight += len(claim.seqs)
            relayed = await self._relay(claim)
        finally:
            if not was_open:
                await self.close()
        if self._failure is not None:
            raise self._failure
        return relayed

    async def _claim_on_and_on(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            if self._in_flight > self._batch_size:
                self._room_made.clear()
                await self._room_made.wait()
                continue
            if self._patience.broker_is_away and not await self._patience.broker_answers():
                attempt += 1
                await self._patience.pause(backoff_s(attempt))
                continue
            attempt = 0
            claim = await self._patience.ask(partial(self._store.claim, self._batch_size))
            if claim is None:
                await self._sleep()
                continue
            self._in_flight += len(claim.seqs)
            relaying = asyncio.create_task(self._relay(claim))
            self._relaying.add(relaying)
            relaying.add_done_callback(self._has_relayed)

    def _has_relayed(self, relaying: asyncio.Task[Relayed]) -> None:
        self._relaying.discard(relaying)
        if relaying.cancelled() or (error := relaying.exception()) is None:
            self._wakeup.nudge()  # what waited for these rows may go now
        elif isinstance(error, Exception):
            self._fail(error)

    async def _sleep(self) -> None:
        """Until there may be something to claim."""
        has_slept = False
        while not self._stopping.is_set():
            look = await self._patience.ask(self._store.look)
            if has_slept and (look.ready or (look.due_in_s is not None and look.due_in_s <= 0)):
                return
            nap_s = self._wakeup.poll_s
            if look.due_in_s is not None:
                nap_s = min(nap_s, max(look.due_in_s, _SHORTEST_NAP_S))
            if await self._wakeup.wait(nap_s):
                return
            has_slept = True

    async def _relay(self, claim: Claim) -> Relayed:
        unfinished = len(claim.seqs)

        def finished(rows: int) -> None:
            nonlocal unfinished
            unfinished -= rows
            self._land(rows)

        relayed = Relayed()
        try:
            rows = await self._patience.ask(partial(self._store.read, claim))
            batch = Batch(rows, self._publisher, until=claim.until, finished=finished)
            self._batches.add(batch)
            try:
                await self._publish(batch, claim, relayed)
            finally:
                self._batches.discard(batch)
                await batch.abandon()
            await self._end(batch, claim, relayed)
        finally:
            self._land(unfinished)
        return relayed

    def _land(self, rows: int) -> None:
        self._in_flight -= rows
        if self._in_flight <= self._batch_size:
            self._room_made.set()

    async def _publish(self, batch: Batch, claim: Claim, relayed: Relayed) -> None:
        if self._stopping.is_set():
            batch.stop()
        settled = 0
        while True:
            is_over = await batch.publish(step_s=_SETTLE_EVERY_S)
            confirmed = batch.confirmed[settled:]
            if confirmed:
                sent = await self._patience.ask(partial(self._store.settle, claim.token, confirmed))
                settled += len(confirmed)
                relayed.sent += sent
                self.counts.sent += sent
            if is_over or self._patience.is_over():
                return

    async def _end(self, batch: Batch, claim: Claim, relayed: Relayed) -> None:
        """Give back or put off all that was not confirmed."""
        if batch.fatal is not None:
            self._fail(batch.fatal)
        if batch.refused:
            await self._back_off(batch.refused, claim, relayed)
        if batch.lost is not None:
            self._patience.broker_went_away(batch.lost)
        ended = set(batch.confirmed).union(row.seq for row, _ in batch.refused)
        if batch.overdue and await self._patience.broker_answers():
            # It is there and takes no events of these topics: they must not keep others waiting.
            overdue = [row.seq for row, _ in batch.overdue]
            ended.update(overdue)
            error = str(batch.overdue[0][1])
            log.warning("the broker does not confirm some events", rows=len(overdue), reason=error)
            await self._patience.ask(
                partial(self._store.postpone, claim.token, overdue, delay_s=_OVERDUE_S, error=error)
            )
        left = [seq for seq in claim.seqs if seq not in ended]
        if left:
            await self._patience.ask(partial(self._store.release, claim.token, left))

    async def _back_off(
        self, refused: Sequence[tuple[ClaimedRow, Exception]], claim: Claim, relayed: Relayed
    ) -> None:
        refusals = [
            Refusal(row.seq, row.attempts + 1, str(error), _back_off_s(row.attempts + 1))
            for row, error in refused
        ]
        dead = await self._patience.ask(
            partial(
                self._store.back_off,
                claim.token,
                refusals,
                dead_after_attempts=self._dead_after_attempts,
                dead_after_s=self._dead_after_s,
            )
        )
        relayed.refused += len(refusals) - dead
        relayed.dead += dead
        self.counts.refused += len(refusals) - dead
        self.counts.dead += dead
        log.warning("the broker refused events", rows=len(refusals), first=refusals[0].error)
        if dead:
            log.error("events are dead; see `evworker outbox dead`", rows=dead)

    async def _beat(self) -> None:
        last_sent, last_at = self.counts.sent, time.monotonic()
        while True:
            now = time.monotonic()
            per_second = round((self.counts.sent - last_sent) / max(now - last_at, 0.001))
            last_sent, last_at = self.counts.sent, now
            try:
                await self._store.beat(sent=self.counts.sent, per_second=per_second)
                while await self._store.prune():
                    pass
            except (DatabaseError, DBAPIError, OSError) as error:
                log.debug("no heartbeat", reason=str(error))  # who claims says it aloud
            await asyncio.sleep(BEAT_S)

    def _fail(self, error: Exception) -> None:
        if self._stopping.is_set() and isinstance(error, (DatabaseError, DBAPIError)):
            # Nothing is lost: what was published and not settled goes again, with the same id.
            log.warning("stopped before the database was back", reason=str(error))
        elif self._failure is None:
            self._failure = error
        self.stop()


def _back_off_s(attempt: int) -> float:
    """Seconds until the next attempt, which jitter only lengthens."""
    full = min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2.0 ** min(attempt - 1, 32))
    return full * random.uniform(1.0, 1.25)
