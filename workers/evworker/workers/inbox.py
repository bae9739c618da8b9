"""The inbox: which events each consumer has applied, so that none is applied twice.

Its row is written first in the transaction of the attempt, and committed with what the handler did.
A second delivery of the event finds it; one that comes while the first is at work waits at it for
the outcome, and goes on if that is a rollback.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import delete, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from evworker.broker import (
    DatabaseUnreachableError,
    InvalidEventError,
    Outbox,
    TransactionError,
)
from evworker.broker.backoff import backoff_s
from evworker.broker.database.engine import address_of, database_errors, read_committed
from evworker.broker.database.tables import ID_CHARACTERS, inbox, seconds_from_now, utc_now
from evworker.broker.envelope import new_id
from evworker.workers.transaction import Transaction, guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from evworker.broker import Envelope
    from evworker.workers.consumer import Consumer

log = structlog.get_logger("evworker.inbox")

_LONGEST_HOLD_S = 600.0
"""Well below the 30 minutes after which the broker takes a delivery back by itself."""

_PRUNED_AT_ONCE = 1_000
"""Moments whose rows go in one transaction, so that it is short."""

_LOOKED_UP_AT_ONCE = 100
"""Moments in one statement; of 200 and more MariaDB only guesses what it would find, and reads all
of a table that is not large.
"""

# Two at once, and one has to begin anew: no fault of the message or of the database.
_LOST_A_RACE = ("40001", "40P01")
_LOST_A_RACE_NUMBERS = (1020, 1205, 1213)


class Inbox:
    """The inbox in one database. `window_s` is how long it remembers, in seconds."""

    def __init__(self, engine: AsyncEngine, *, window_s: float) -> None:
        self._engine = engine
        self._guarded = guarded(engine)
        self._window_s = window_s
        self._insert = _INSERTS[engine.dialect.name]
        # Its writers poll for their turn, and some never get it; a line is fair.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else None
        self._is_away = False

    async def check(self) -> None:
        """Raise TransactionError if the database keeps what is rolled back.

        An engine or a driver that commits by itself, or tables without transactions: the inbox row
        of a failed attempt would stay, and its event be taken for a duplicate ever after.
        """
        row = {"consumer": "evworker check", "event_id": new_id()}
        mine = (inbox.c.consumer == row["consumer"], inbox.c.event_id == row["event_id"])
        with database_errors(self._engine, "try a transaction"):
            async with self._engine.connect() as connection:
                await connection.execute(self._insert, row)
                await connection.rollback()
                if await connection.scalar(select(inbox.c.event_id).where(*mine)) is None:
                    return
                await connection.execute(delete(inbox).where(*mine))
                await connection.commit()
        raise TransactionError(
            f"{address_of(self._engine)} keeps what is rolled back, so there are no transactions; "
            "leave out autocommit in the engine and in the URL, and on MySQL have InnoDB tables"
        )

    async def begin(
        self, consumer: Consumer, envelope: Envelope, may_wait: Callable[[], bool]
    ) -> Transaction | None:
        """A transaction with the event's row in it, or None when the consumer has applied it.

        While the database is away it is tried again, for as long as `may_wait` says and ten minutes
        at most; then raises DatabaseUnreachableError. Raises InvalidEventError for an event that
        can't be told from others.
        """
        _check_identity(envelope)
        row = {"consumer": consumer.name, "event_id": envelope.id}
        attempt = 0
        until = asyncio.get_running_loop().time() + _LONGEST_HOLD_S
        try:
            async with asyncio.timeout_at(until):
                while True:
                    try:
                        begun = await self._begin(consumer, row)
                    except (SQLAlchemyError, OSError) as error:
                        attempt += 1
                        self._tell(error)
                        # A driver that connects may make an error of its own of the time-out.
                        is_over = asyncio.get_running_loop().time() >= until
                        if is_over or not may_wait():
                            raise self._unreachable(error) from error
                        await asyncio.sleep(backoff_s(attempt))
                    else:
                        self._tell(None)
                        return begun
        except TimeoutError as error:
            late = TimeoutError(f"not within {_LONGEST_HOLD_S:g} s")
            self._tell(late)
            raise self._unreachable(late) from error

    async def _begin(self, consumer: Consumer, row: dict[str, str]) -> Transaction | None:
        if self._turn is not None:
            await self._turn.acquire()
        outbox = Outbox(source=consumer.plugin)
        transaction = Transaction(
            self._guarded, outbox, self._turn.release if self._turn else _nothing
        )
        is_new = False
        try:
            is_new = await transaction.insert(self._insert, row)
        except IntegrityError:
            return None  # MySQL's way to say so
        finally:
            if not is_new:
                await transaction.roll_back()
        return transaction if is_new else None

    def _tell(self, error: Exception | None) -> None:
        """Log that the database is away, and that it is back, once each."""
        if error is not None and _lost_a_race(error):
            return
        if error is not None and not self._is_away:
            log.warning(
                "can't begin a transaction, holding what has come",
                database=address_of(self._engine),
                error=str(error),
            )
        elif error is None and self._is_away:
            log.info("transactions can be begun again", database=address_of(self._engine))
        self._is_away = error is not None

    def _unreachable(self, error: Exception) -> DatabaseUnreachableError:
        return DatabaseUnreachableError(
            f"can't begin a transaction in {address_of(self._engine)}: {error}"
        )

    async def prune(self) -> int:
        """Forget what is older than the window; returns how many rows that were.

        Raises a DatabaseError.
        """
        bound = seconds_from_now(-self._window_s)
        first_moments = (
            select(inbox.c.handled_at)
            .where(inbox.c.handled_at < bound)
            .order_by(inbox.c.handled_at)
            .distinct()
            .limit(_PRUNED_AT_ONCE)
        )
        pruned = 0
        with database_errors(self._engine, "prune the inbox"):
            while True:
                async with read_committed(self._engine) as connection:
                    moments = (await connection.scalars(first_moments)).all()
                    for first in range(0, len(moments), _LOOKED_UP_AT_ONCE):
                        some = moments[first : first + _LOOKED_UP_AT_ONCE]
                        gone = _PRUNE.where(inbox.c.handled_at.in_(some))
                        pruned += (await connection.execute(gone)).rowcount
                if len(moments) < _PRUNED_AT_ONCE:
                    return pruned


def _nothing() -> None: ...


_VALUES: dict[str, Any] = {"handled_at": utc_now()}
_INSERTS: dict[str, Any] = {
    "postgresql": postgresql.insert(inbox).values(_VALUES).on_conflict_do_nothing(),
    "sqlite": sqlite.insert(inbox).values(_VALUES).on_conflict_do_nothing(),
    # INSERT IGNORE would also cut an id that is too long, and take it for another one.
    "mysql": mysql.insert(inbox).values(_VALUES),
    "mariadb": mysql.insert(inbox).values(_VALUES),
}


# By the moments one by one: MySQL left to itself may read all of a small table, and of a range it
# reads one row too many. It waits at each row that belongs to a handler still at work.
_PRUNE = delete(inbox)
for _dialect in ("mysql", "mariadb"):
    # Only the form for several tables takes a hint.
    _PRUNE = _PRUNE.prefix_with(inbox.name, dialect=_dialect).with_hint(
        "FORCE INDEX (evworker_inbox_by_time)", dialect_name=_dialect
    )


def _check_identity(envelope: Envelope) -> None:
    if not envelope.has_lasting_id:
        raise InvalidEventError(
            f"{envelope.topic} came without an id, so that a duplicate could not be told from it; "
            "its producer must set message_id. A replay has one"
        )
    id = envelope.id
    # A blank at the end is nothing to MySQL, and PostgreSQL takes no NUL.
    if len(id) > ID_CHARACTERS or "\0" in id or id != id.rstrip(" "):
        raise InvalidEventError(
            f"{envelope.topic}: the inbox can't keep its id {id[:40]!r}; ids have at most "
            f"{ID_CHARACTERS} characters, none of them NUL, and no blank at the end"
        )


def _lost_a_race(error: Exception) -> bool:
    driver_error = error.orig if isinstance(error, DBAPIError) else None
    if driver_error is None:
        return False
    first = next(iter(driver_error.args), None)
    return getattr(driver_error, "sqlstate", None) in _LOST_A_RACE or first in _LOST_A_RACE_NUMBERS
