"""The relay's side of the outbox: claim rows, read them, and end the claim in one of five ways.

Why there is no cursor over `seq`: a transaction takes its numbers when it inserts and shows its
rows when it commits. One that took its number first and commits last would be passed over for ever
by a reader that remembers how far it got. So each row has a state, a claim asks for the lowest rows
that are ready, and nothing remembers anything.

Order per key needs every relay to see what the others hold. Claims are therefore made one at a
time, behind the row of `locks` that is named "outbox", and each statement reads what is committed
when it begins. That is also why rows are not skipped while they are locked: whoever skips the first
row of a key takes the second. The lock is held for a few milliseconds, and
nothing is locked while a relay talks to the broker.

A claim ends with its lease, by the database's clock. What is done in its name later does nothing:
each claim draws a token, and every statement that ends one asks for that token.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CursorResult,
    Insert,
    any_,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from evworker.broker.database.engine import database_errors, read_committed
from evworker.broker.database.schema import OUTBOX_LOCK
from evworker.broker.database.tables import locks, outbox, relays, seconds_from_now, utc_now
from evworker.broker.errors import ConfigurationError
from evworker.broker.outbox import statements

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_BYTES_AT_ONCE = 16 * 1024 * 1024
_PROMOTE_EVERY_S = 1.0
_LONGEST_ERROR = 2_000
_STALE_S = 60.0

# Relays may have leases of different lengths. What lies further ahead than any of them ends is from
# before the clock was set back.
_SHORTEST_LEASE_S = 1.0
_LONGEST_LEASE_S = 3_600.0

# A relay stops publishing this long before its lease is over, so that what it has sent is there by
# the time that another may begin.
_MARGIN = 0.1
_LONGEST_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that are ours until the lease is over."""

    token: str
    seqs: list[int]
    until: float
    """By `time.monotonic()`: nothing may be published in this claim's name after it."""
    rows: list[ClaimedRow] | None
    """In order, where the database returns what it updates; else `OutboxStore.read` has them."""


class ClaimedRow(NamedTuple):
    """An event to be published."""

    seq: int
    event_id: str
    topic: str
    key: str | None
    body: bytes
    priority: int | None
    headers: bytes | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The broker did not take a row: it is to be tried again after `delay_s` seconds."""

    seq: int
    attempts: int
    """With this one."""
    error: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the outbox has shown, without a claim."""

    ready: bool
    due_in_s: float | None
    """Until a wait or a lease is over; None while there is neither."""


class OutboxStore:
    """The statements of one relay; `name` is for people, two relays may have the same.

    Raises DatabaseUnreachableError, DatabaseRefusedError and SchemaError, and what else a driver
    raises as it is. Every method may be called again after an error.
    """

    def __init__(
        self, engine: AsyncEngine, *, name: str, lease_s: float = 60.0, keep_s: float | None = None
    ) -> None:
        """Raises ConfigurationError for a lease that is too short to be kept, or too long."""
        if not _SHORTEST_LEASE_S <= lease_s <= _LONGEST_LEASE_S:
            raise ConfigurationError(f"a lease of {lease_s:g} s must be 1 second to 1 hour")
        self.relay = str(uuid4())
        self.name = name[:255]
        self.lease_s = lease_s
        self._keep_s = keep_s
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._is_postgresql = engine.dialect.name == "postgresql"
        self._returns_updated = engine.dialect.update_returning
        self._promote_at = 0.0

    async def claim(self, limit: int) -> Claim | None:
        """The lowest rows that may be published now, at most `limit`; None if there are none.

        Of each key they are the first ones in order, and nobody else holds an earlier one.
        """
        started = time.monotonic()
        with database_errors(self._engine, "claim events"):
            async with read_committed(self._engine) as connection:
                await self._lock(connection)
                seqs = await self._choose_or_promote(connection, limit, started)
                if not seqs:
                    return None
                token = str(uuid4())
                rows = await self._take(connection, token, seqs)
        margin_s = min(self.lease_s * _MARGIN, _LONGEST_MARGIN_S)
        return Claim(token, seqs, started + self.lease_s - margin_s, rows)

    async def read(self, claim: Claim) -> list[ClaimedRow]:
        """The claim's rows, in order; fewer if its lease is over."""
        if claim.rows is not None:
            return claim.rows
        with database_errors(self._engine, "read events"):
            async with self._single_statements() as connection:
                rows = await connection.execute(
                    statements.READ.where(self._among(claim.seqs)), {"token": claim.token}
                )
                return list(map(ClaimedRow._make, rows))

    async def settle(self, token: str, seqs: Sequence[int]) -> int:
        """Remove, or keep as sent, what the broker has; returns how many were still ours."""
        if self._keep_s is None:
            statement: Any = statements.DELETE
            values: dict[str, Any] = {"token": token}
        else:
            statement, values = statements.KEEP, {"token": token, "keep": self._keep_s}
        return await self._run("settle events", statement, seqs, values)

    async def release(self, token: str, seqs: Sequence[int]) -> int:
        """Give back what was not published, by no fault of its own."""
        return await self._run("release events", statements.RELEASE, seqs, {"token": token})

    async def postpone(self, token: str, seqs: Sequence[int], *, delay_s: float, error: str) -> int:
        """Let rows wait, and with them their keys; it brings them no nearer to being dead."""
        values = {"token": token, "delay": delay_s, "error": error[:_LONGEST_ERROR]}
        return await self._run("postpone events", statements.POSTPONE, seqs, values)

    async def back_off(
        self,
        token: str,
        refusals: Sequence[Refusal],
        *,
        dead_after_attempts: int,
        dead_after_s: float,
    ) -> int:
        """Let refused rows wait; returns how many of them are dead instead.

        Dead is what was refused `dead_after_attempts` times, of which the first is at least
        `dead_after_s` seconds ago.
        """
        dead = 0
        with database_errors(self._engine, "put off events"):
            async with read_committed(self._engine) as connection:
                for refusal in refusals:
                    may_die = refusal.attempts >= dead_after_attempts
                    statement = statements.BURY_OR_BACK_OFF if may_die else statements.BACK_OFF
                    values = {
                        "token": token,
                        "row": refusal.seq,
                        "tried": refusal.attempts,
                        "error": refusal.error[:_LONGEST_ERROR],
                        "delay": refusal.delay_s,
                    }
                    if may_die:
                        values["patience"] = -dead_after_s
                    await connection.execute(statement, values)
                dead += await self._dead_of(
                    connection, [one.seq for one in refusals if one.attempts >= dead_after_attempts]
                )
        return dead

    async def look(self) -> Look:
        """Whether a claim may find something, and when else: reads only, and locks nothing."""
        with database_errors(self._engine, "look at the outbox"):
            async with self._single_statements() as connection:
                ready, waiting, claimed, now = (await connection.execute(statements.LOOK)).one()
        due = [moment for moment in (waiting, claimed) if moment is not None]
        due_in_s = (min(due) - now).total_seconds() if due else None
        return Look(ready is not None, due_in_s)

    async def prune(self) -> int:
        """Delete sent rows that were kept for long enough, some thousands at most."""
        with database_errors(self._engine, "prune the outbox"):
            async with self._single_statements() as connection:
                seqs = (await connection.scalars(statements.PRUNABLE)).all()
        return await self._run("prune the outbox", statements.PRUNE, seqs, {}) if seqs else 0

    async def beat(self, *, sent: int, per_second: int) -> None:
        """Say that this relay is at work, and forget those that have not said so for a minute."""
        values = {"relay": self.relay, "sent": sent, "per_second": per_second}
        with database_errors(self._engine, "write the relay's heartbeat"):
            async with read_committed(self._engine) as connection:
                told = (
                    update(relays)
                    .where(relays.c.relay == self.relay)
                    .values(seen_at=utc_now(), sent=sent, per_second=per_second)
                )
                if not (await connection.execute(told)).rowcount:
                    first = insert(relays).values(
                        **values, name=self.name, started_at=utc_now(), seen_at=utc_now()
                    )
                    await connection.execute(first)
                await connection.execute(
                    delete(relays).where(relays.c.seen_at < seconds_from_now(-_STALE_S))
                )

    async def leave(self) -> None:
        """Take this relay off the list of those that are at work."""
        gone = delete(relays).where(relays.c.relay == self.relay)
        with database_errors(self._engine, "remove the relay's heartbeat"):
            async with self._single_statements() as connection:
                await connection.execute(gone)

    @asynccontextmanager
    async def _single_statements(self) -> AsyncIterator[AsyncConnection]:
        async with self._engine.connect() as connection:
            if self._is_postgresql:
                # No BEGIN and no COMMIT, which are a round trip each.
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")
                return
            async with connection.begin():
                yield connection

    async def _lock(self, connection: AsyncConnection) -> None:
        while not await self._is_locked(connection):
            # Tables that a migration made have no such row.
            await connection.execute(self._lock_row())

    async def _is_locked(self, connection: AsyncConnection) -> bool:
        if self._is_sqlite:
            # Whichever row it is, the first write takes the lock on the whole file.
            return bool((await connection.execute(statements.LOCK_FILE)).rowcount)
        return (await connection.execute(statements.LOCK_ROW)).first() is not None

    def _lock_row(self) -> Insert:
        if self._is_sqlite:
            return sqlite.insert(locks).values(name=OUTBOX_LOCK).on_conflict_do_nothing()
        if self._is_postgresql:
            return postgresql.insert(locks).values(name=OUTBOX_LOCK).on_conflict_do_nothing()
        return insert(locks).values(name=OUTBOX_LOCK).prefix_with("IGNORE")

    async def _promote(self, connection: AsyncConnection) -> None:
        # Two statements, since MySQL has no LIMIT in the subquery of an UPDATE.
        too_far = {"too_far": _LONGEST_LEASE_S}
        due = (await connection.scalars(statements.DUE, too_far)).all()
        for some in self._in_parts(due):
            await connection.execute(statements.PROMOTE.where(self._among(some)), too_far)

    async def _choose_or_promote(
        self, connection: AsyncConnection, limit: int, now: float
    ) -> list[int]:
        """What may be claimed; what has become due is looked for each second, or if it is none."""
        due_was_seen = now >= self._promote_at
        if due_was_seen:
            await self._promote(connection)
            self._promote_at = now + _PROMOTE_EVERY_S
        seqs = await self._choose(connection, limit)
        if not seqs and not due_was_seen:
            await self._promote(connection)
            seqs = await self._choose(connection, limit)
        return seqs

    async def _take(
        self, connection: AsyncConnection, token: str, seqs: list[int]
    ) -> list[ClaimedRow] | None:
        values = {"token": token, "relay": self.name, "lease": self.lease_s}
        rows: list[ClaimedRow] = []
        for some in self._in_parts(seqs):
            claim: Any = statements.CLAIM.where(self._among(some))
            if self._returns_updated:
                claim = claim.returning(*statements.CLAIMED_ROW)
            taken = await connection.execute(claim, values)
            if self._returns_updated:
                rows += map(ClaimedRow._make, taken)
        return sorted(rows, key=attrgetter("seq")) if self._returns_updated else None

    async def _choose(self, connection: AsyncConnection, limit: int) -> list[int]:
        chosen: list[int] = []
        total = 0
        is_mysql = not (self._is_sqlite or self._is_postgresql)
        claimable: Any = statements.CLAIMABLE_ON_MYSQL if is_mysql else statements.CLAIMABLE
        for seq, size in await connection.execute(claimable, {"most": limit}):
            total += size
            if chosen and total > _BYTES_AT_ONCE:
                break
            chosen.append(seq)
        return chosen

    async def _dead_of(self, connection: AsyncConnection, seqs: Sequence[int]) -> int:
        if not seqs:
            return 0
        counted = select(func.count()).where(outbox.c.state == "dead", self._among(seqs))
        return int((await connection.execute(counted)).scalar_one())

    async def _run(
        self, doing: str, statement: Any, seqs: Sequence[int], values: dict[str, Any]
    ) -> int:
        changed = 0
        with database_errors(self._engine, doing):
            async with self._single_statements() as connection:
                for some in self._in_parts(seqs):
                    result: CursorResult[Any] = await connection.execute(
                        statement.where(self._among(some)), values
                    )
                    changed += result.rowcount
        return changed

    def _in_parts(self, seqs: Sequence[int]) -> list[Sequence[int]]:
        return [seqs] if self._is_postgresql and seqs else statements.in_parts(seqs)

    def _among(self, seqs: Sequence[int]) -> ColumnElement[bool]:
        if self._is_postgresql:
            # One parameter, however many: else each number of them would be a statement of its own.
            return outbox.c.seq == any_(literal(list(seqs), postgresql.ARRAY(BigInteger)))
        return outbox.c.seq.in_(seqs)
