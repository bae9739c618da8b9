"""What an operator asks of the outbox and does to it: how it stands, and what to do with the dead.

A dead row goes on blocking its key, since order comes before speed: `retry_dead` lets it try again,
`discard_dead` gives it up, and either lets its key go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import CursorResult, and_, case, distinct, func, or_, select

from evworker.broker.database.engine import database_errors, read_committed
from evworker.broker.database.tables import outbox, relays, seconds_from_now, utc_now
from evworker.broker.outbox import statements
from evworker.broker.outbox.wakeup import CHANNEL

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

ALIVE_S = 20.0
"""A relay that has not been heard of for so long does not count any more."""


@dataclass(frozen=True, slots=True)
class RelayAtWork:
    """A relay that says it is alive."""

    name: str
    started_at: datetime
    seen_at: datetime
    sent: int
    per_second: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Rows that a relay holds just now."""

    name: str
    rows: int
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """How the outbox stands."""

    ready: int
    """Rows that may go as soon as a relay takes them, or the rows of their key before them."""
    oldest_age_s: float | None
    """Since the oldest row that should be out by now was written; None if there is none."""
    scheduled: int
    backing_off: int
    claimed: int
    dead: int
    sent_kept: int
    per_second: int
    relays: list[RelayAtWork]
    leases: list[Lease]
    blocked_keys: int
    """Keys that wait for a row that backs off or is dead."""

    @property
    def pending(self) -> int:
        """All that is to be published yet; dead rows are not."""
        return self.ready + self.scheduled + self.backing_off + self.claimed


@dataclass(frozen=True, slots=True)
class DeadRow:
    """A row that no relay tries any more."""

    seq: int
    event_id: str
    topic: str
    key: str | None
    created_at: datetime
    attempts: int
    failed_since: datetime | None
    last_error: str | None
    body: bytes


# Whatever waits or is claimed is due some time; it is named as the index of those has it.
_IS_DUE = outbox.c.due_at.is_not(None)
_TRIED = and_(statements.in_state("waiting"), _IS_DUE, outbox.c.attempts > 0)


async def outbox_status(engine: AsyncEngine) -> OutboxStatus:
    """Count what is there. Raises a DatabaseError."""
    kind = case((_TRIED, "backing_off"), else_=outbox.c.state)
    counted = select(kind.label("kind"), func.count().label("number")).group_by("kind")
    oldest = select(func.min(outbox.c.created_at), utc_now()).where(
        or_(outbox.c.state.in_(("ready", "claimed")), _TRIED)
    )
    blocked = select(func.count(distinct(outbox.c.key))).where(
        or_(_TRIED, statements.in_state("dead"))
    )
    at_work = (
        select(
            relays.c.name,
            relays.c.started_at,
            relays.c.seen_at,
            relays.c.sent,
            relays.c.per_second,
        )
        .where(relays.c.seen_at >= seconds_from_now(-ALIVE_S))
        .order_by(relays.c.name, relays.c.started_at)
    )
    held = (
        select(outbox.c.claimed_by, func.count(), func.max(outbox.c.due_at))
        .where(statements.in_state("claimed"), _IS_DUE)
        .group_by(outbox.c.claimed_by)
        .order_by(outbox.c.claimed_by)
    )
    with database_errors(engine, "read the outbox's status"):
        async with engine.connect() as connection:
            rows = {row.kind: row.number for row in await connection.execute(counted)}
            since, now = (await connection.execute(oldest)).one()
            working = [RelayAtWork(*row) for row in await connection.execute(at_work)]
            leases = [Lease(*row) for row in await connection.execute(held)]
            blocked_keys = (await connection.execute(blocked)).scalar_one()
    return OutboxStatus(
        ready=rows.get("ready", 0),
        oldest_age_s=None if since is None else max(0.0, (now - since).total_seconds()),
        scheduled=rows.get("waiting", 0),
        backing_off=rows.get("backing_off", 0),
        claimed=rows.get("claimed", 0),
        dead=rows.get("dead", 0),
        sent_kept=rows.get("sent", 0),
        per_second=sum(relay.per_second for relay in working),
        relays=working,
        leases=leases,
        blocked_keys=blocked_keys,
    )


async def dead_rows(engine: AsyncEngine, *, limit: int = 100) -> list[DeadRow]:
    """The dead rows, at most `limit`, in the order in which they were written."""
    columns = outbox.c
    listed = (
        select(
            columns.seq,
            columns.event_id,
            columns.topic,
            columns.key,
            columns.created_at,
            columns.attempts,
            columns.failed_since,
            columns.last_error,
            columns.body,
        )
        .where(statements.in_state("dead"))
        .order_by(columns.seq)
        .limit(limit)
    )
    with database_errors(engine, "list dead rows"):
        async with engine.connect() as connection:
            return [DeadRow(*row) for row in await connection.execute(listed)]


async def retry_dead(engine: AsyncEngine, seqs: Sequence[int] | None = None) -> int:
    """Let dead rows be tried as if for the first time, these or all; returns how many they were."""
    return await _with_the_dead(engine, "retry dead rows", statements.RETRY, seqs)


async def discard_dead(engine: AsyncEngine, seqs: Sequence[int]) -> int:
    """Delete dead rows, which are never published then; returns how many they were."""
    return await _with_the_dead(engine, "discard dead rows", statements.DISCARD, seqs)


async def _with_the_dead(
    engine: AsyncEngine, doing: str, statement: Any, seqs: Sequence[int] | None
) -> int:
    changed = 0
    with database_errors(engine, doing):
        async with read_committed(engine) as connection:
            for some in statements.in_parts(await _dead_among(connection, seqs)):
                result: CursorResult[Any] = await connection.execute(
                    statement.where(outbox.c.seq.in_(some))
                )
                changed += result.rowcount
            if changed and engine.dialect.name == "postgresql":
                await connection.execute(select(func.pg_notify(CHANNEL, "")))
    return changed


async def _dead_among(connection: AsyncConnection, seqs: Sequence[int] | None) -> list[int]:
    """Read and not locked: of what is named, some may be in a transaction that is still open."""
    if seqs is None:
        return list(await connection.scalars(statements.DEAD))
    dead: list[int] = []
    for some in statements.in_parts(seqs):
        dead += await connection.scalars(statements.DEAD.where(outbox.c.seq.in_(some)))
    return dead
