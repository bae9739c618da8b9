"""Checks of the database: its tables, what waits in the outbox, how long an inbox remembers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from evworker.broker import format_duration
from evworker.broker.errors import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    SchemaError,
)
from evworker.workers.finding import DatabaseSeen, Finding, Observed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evworker.broker.outbox.operating import OutboxStatus
    from evworker.workers.consumer import Consumer

DEFAULT_INBOX_WINDOW_S = 7 * 86_400.0

LATE_S = 60.0
"""An event that waits in the outbox for so long is late: a relay needs milliseconds."""

_INIT = "`evworker outbox init`, or your migrations"


def check_database(seen: Observed) -> Iterator[Finding]:
    """Whether there is a database for who needs one, and evworker's tables in it."""
    if seen.database is None:
        for consumer in _transactional(seen):
            yield Finding(
                "problem",
                "database",
                consumer.name,
                "it is transactional, and without a database its worker does not start",
                "--database-url, here and for `evworker run`; or EVWORKER_DATABASE_URL",
            )
        return
    database = seen.database
    match database.fault:
        case None:
            yield Finding(
                "ok", "database", database.address, "it answers, and all tables are there"
            )
        case SchemaError() as fault:
            yield _problem(database, fault, _INIT)
        case DatabaseRefusedError() as fault:
            yield _problem(database, fault, "user, password and name in --database-url")
        case DatabaseUnreachableError() as fault:
            yield _problem(database, fault, "start it, or another host in --database-url")
        case fault:
            yield _problem(database, fault, "what the database says")


def _problem(database: DatabaseSeen, fault: DatabaseError, fix: str) -> Finding:
    return Finding("problem", "database", database.address, str(fault), fix)


def check_outbox(seen: Observed) -> Iterator[Finding]:
    """What waits in the outbox and should not: dead rows, old ones, rows that nobody publishes."""
    if seen.database is None or seen.database.outbox is None:
        return
    where, outbox = seen.database.address, seen.database.outbox
    if outbox.dead:
        yield Finding(
            "problem",
            "outbox",
            where,
            f"{outbox.dead:,} committed events are dead rows: the broker kept refusing them, and "
            "the later ones of their keys wait behind them",
            "`evworker outbox dead`, then `evworker outbox retry` or `discard`",
        )
    if outbox.relays:
        names = ", ".join(relay.name for relay in outbox.relays)
        yield Finding("ok", "outbox", where, f"published by {names}")
        yield from _late(where, outbox)
    elif _is_late(outbox):
        yield Finding(
            "problem",
            "outbox",
            where,
            f"{outbox.ready:,} events wait, the oldest for {_about(outbox.oldest_age_s)}, and no "
            "relay is at work",
            "`evworker outbox relay`, or `evworker run` with this database",
        )
    else:
        yield Finding(
            "note",
            "outbox",
            where,
            "no relay is at work just now",
            "`evworker outbox relay`, or `evworker run` with this database",
        )


def _late(where: str, outbox: OutboxStatus) -> Iterator[Finding]:
    if outbox.backing_off:
        yield Finding(
            "warning",
            "outbox",
            where,
            f"{outbox.backing_off:,} events are refused by the broker, and tried again",
            "the relay's log says why",
        )
    elif _is_late(outbox):
        yield Finding(
            "warning",
            "outbox",
            where,
            f"the oldest of {outbox.ready + outbox.claimed:,} events waits for "
            f"{_about(outbox.oldest_age_s)}, at {outbox.per_second:,} published a second",
            "the relay's log says whether the broker is away; `evworker outbox status`",
        )


def check_inbox(seen: Observed) -> Iterator[Finding]:
    """Whether an inbox remembers for longer than an event can be on its way."""
    window_s, window = seen.inbox_window_s, format_duration(seen.inbox_window_s)
    for consumer in _transactional(seen):
        horizon_s = consumer.retry.horizon_s
        if horizon_s >= window_s:
            yield Finding(
                "problem",
                "inbox",
                consumer.name,
                f"its retries take up to {format_duration(horizon_s)}, and its inbox remembers "
                f"{window}: an event that comes again after that is applied again",
                f"--inbox-window above {format_duration(horizon_s)}, for all workers",
            )
        else:
            yield Finding(
                "ok",
                "inbox",
                consumer.name,
                f"its inbox remembers {window}, and its retries take up to "
                f"{format_duration(horizon_s)}, but for waits that it asks for itself",
            )
    for queue, died_at in seen.oldest_letters.items():
        age_s = (datetime.now(UTC) - died_at).total_seconds()
        if age_s >= window_s:
            yield Finding(
                "warning",
                "inbox",
                queue,
                f"its oldest letter failed {_about(age_s)} ago, and the inbox remembers {window}: "
                "if another copy of it was applied before that, a replay applies it again",
                f"--inbox-window above {_about(age_s)}, and replay or purge letters before that",
            )


def _transactional(seen: Observed) -> Iterator[Consumer]:
    for consumers in seen.consumers.values():
        yield from (consumer for consumer in consumers if consumer.transactional)


def _is_late(outbox: OutboxStatus) -> bool:
    return outbox.oldest_age_s is not None and outbox.oldest_age_s > LATE_S


def _about(seconds: float | None) -> str:
    """In whole days, hours, minutes or seconds: nobody wants to read more of an age."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds or 0:.0f}s"
