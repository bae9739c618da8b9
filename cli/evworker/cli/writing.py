"""Writing many events into the outbox: some hundred to a transaction, each committed on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from evworker.broker import Envelope
from evworker.broker.database.engine import database_errors
from evworker.broker.errors import DatabaseError, HeadersError
from evworker.broker.outbox.row import AT_ONCE, Row, rows_of
from evworker.broker.outbox.session import write
from evworker.broker.pace import Pace

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

IN_A_TRANSACTION = 500
"""One transaction for a pipe that may never end would never be committed."""

_WAITS_S = 0.2
"""How long an event may wait for others to share its transaction."""


class Batches:
    """Writes envelopes, up to IN_A_TRANSACTION at once, and `rate` a second if given.

    The first failure of the database ends it: `publish` and `drained` raise it. An event that no
    row can hold goes to `refuse`, with the number it was given under.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        priority: int | None,
        rate: float | None,
        refuse: Callable[[int, Exception], None],
    ) -> None:
        self.published = 0
        """How many are committed."""
        self.first_unconfirmed: int | None = None
        self.uncertain = 0
        """How many, from `first_unconfirmed` on, may be committed or not: nobody could tell."""
        self._engine = engine
        self._priority = priority
        self._pace = Pace(rate)
        self._refuse = refuse
        self._waiting: list[tuple[int, Row]] = []
        self._committing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failure: DatabaseError | None = None

    async def publish(self, number: int, envelope: Envelope) -> None:
        """Returns as soon as there is room for the next one."""
        await self._pace.wait()
        if self._failure is not None:
            raise self._failure
        try:
            (row,) = rows_of([envelope], self._priority, None)
        except HeadersError as error:
            self._refuse(number, error)
            return
        self._waiting.append((number, row))
        if len(self._waiting) >= IN_A_TRANSACTION:
            await self._committed()
            self._start()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAITS_S, self._when_it_is_time)

    async def drained(self) -> None:
        """Commit what is left."""
        await self._committed()
        self._start()
        await self._committed()

    def _when_it_is_time(self) -> None:
        self._timer = None
        if self._committing is None or self._committing.done():
            self._start()

    async def _committed(self) -> None:
        """Wait for the transaction that is under way; raises what has ended it all."""
        if self._committing is not None:
            # An interrupt must not leave it open whether this one was committed.
            await asyncio.shield(self._committing)
        if self._failure is not None:
            raise self._failure

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._failure is None:
            batch, self._waiting = self._waiting, []
            self._committing = asyncio.create_task(self._write(batch))

    async def _write(self, batch: list[tuple[int, Row]]) -> None:
        rows = [row for _, row in batch]
        is_committing = False
        try:
            with database_errors(self._engine, "write into the outbox"):
                async with self._engine.connect() as connection:
                    await write(connection, rows, AT_ONCE)
                    is_committing = True
                    await connection.commit()
        except DatabaseError as error:
            self._failure = error
            self.first_unconfirmed = batch[0][0]
            self.uncertain = len(batch) if is_committing else 0
        else:
            self.published += len(batch)
