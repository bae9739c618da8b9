"""What a relay asks of the database, in one dialect; `store.py` says when, and of which rows.

And what an operator does to dead rows, for `operating.py`.

Each statement about claimed rows asks for the claim's token, `token`: after the lease it does
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Delete,
    Float,
    Select,
    String,
    Subquery,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)

from evworker.broker.database.schema import OUTBOX_LOCK
from evworker.broker.database.tables import (
    State,
    locks,
    outbox,
    seconds_from_now,
    utc_now,
)

PROMOTED_AT_ONCE = 5_000
PRUNED_AT_ONCE = 5_000
_NAMED_AT_ONCE = 500

_Write = TypeVar("_Write", Update, Delete)


_MYSQL = ("mysql", "mariadb")


def _by_its_number(statement: _Write) -> _Write:
    """Have MySQL look up rows by `seq`, and nothing else.

    Left to itself it may read all of a small table, and then it waits at each row that somebody
    has written and not committed: a relay would stand still for as long as any of its writers.
    """
    for dialect in _MYSQL:
        if isinstance(statement, Delete):
            # Only the form for several tables takes a hint.
            statement = statement.prefix_with(outbox.name, dialect=dialect)
        statement = statement.with_hint("FORCE INDEX (PRIMARY)", dialect_name=dialect)
    return statement


def in_parts(seqs: Sequence[int]) -> list[Sequence[int]]:
    """Rows to be named in one statement each.

    Of a thousand and more MySQL's kin makes a table to join with, looks up no row by its number,
    and waits as `_by_its_number` says.
    """
    return [seqs[first : first + _NAMED_AT_ONCE] for first in range(0, len(seqs), _NAMED_AT_ONCE)]


def _from_now(parameter: str) -> seconds_from_now:
    return seconds_from_now(bindparam(parameter, type_=Float))


def in_state(state: State) -> ColumnElement[bool]:
    """Whether a row is in this state."""
    return outbox.c.state == _written(state)


def _written(state: State) -> ColumnElement[str]:
    # In the text and not as a parameter: a server that plans once for every state may find that
    # reading the whole table is best on average.
    return literal_column(f"'{state}'", String)


def _is_behind_another() -> ColumnElement[bool]:
    """Whether an earlier row of the key is held by somebody, waits to be retried, or is dead.

    A scheduled row, which nobody has tried yet, joins its key's line when it is due.
    """
    return _is_behind("claimed", "dead", "waiting")


def _is_behind(*states: State) -> ColumnElement[bool]:
    earlier = outbox.alias("earlier")
    found = select(earlier.c.seq)
    for dialect in _MYSQL:
        found = found.with_hint(earlier, "FORCE INDEX (evworker_outbox_by_key)", dialect)
    return exists(
        found.where(
            earlier.c.key == outbox.c.key,
            earlier.c.seq < outbox.c.seq,
            earlier.c.state.in_([_written(state) for state in states])
            if len(states) > 1
            else earlier.c.state == _written(states[0]),
            or_(earlier.c.state != _written("waiting"), earlier.c.attempts > 0),
        )
    )


_MINE = outbox.c.claim == bindparam("token")
_UNCLAIMED = {"claim": None, "claimed_by": None}

LOCK_ROW = select(locks.c.name).where(locks.c.name == OUTBOX_LOCK).with_for_update()
LOCK_FILE = update(locks).where(locks.c.name == OUTBOX_LOCK).values(name=OUTBOX_LOCK)


def _claimable(is_behind_another: ColumnElement[bool]) -> Select[tuple[int, int]]:
    return (
        select(outbox.c.seq, func.length(outbox.c.body))
        .where(in_state("ready"), or_(outbox.c.key.is_(None), ~is_behind_another))
        .order_by(outbox.c.seq)
        .limit(bindparam("most"))
    )


CLAIMABLE = _claimable(_is_behind_another())
# With the states in one list MySQL reads all that is claimed, or all of the key, for each row.
CLAIMABLE_ON_MYSQL = _claimable(
    or_(_is_behind("claimed"), _is_behind("dead"), _is_behind("waiting"))
)
CLAIM = (
    _by_its_number(update(outbox))
    .where(in_state("ready"))
    .values(
        state="claimed",
        claim=bindparam("token"),
        claimed_by=bindparam("relay"),
        due_at=_from_now("lease"),
    )
)
CLAIMED_ROW = (
    outbox.c.seq,
    outbox.c.event_id,
    outbox.c.topic,
    outbox.c.key,
    outbox.c.body,
    outbox.c.priority,
    outbox.c.headers,
    outbox.c.attempts,
)
READ = select(*CLAIMED_ROW).where(_MINE).order_by(outbox.c.seq)


# A lease that ends later than any could was given before the clock was set back.
_TOO_FAR = and_(in_state("claimed"), outbox.c.due_at > _from_now("too_far"))


def _due(state: State) -> Subquery:
    # Each state by itself and in the order of the index; rows that were scheduled for one moment
    # keep their order then.
    return (
        select(outbox.c.seq)
        .where(in_state(state), outbox.c.due_at <= utc_now())
        .order_by(outbox.c.due_at, outbox.c.seq)
        .limit(PROMOTED_AT_ONCE)
        .subquery()
    )


DUE = union_all(
    select(_due("claimed")),
    select(_due("waiting")),
    select(select(outbox.c.seq).where(_TOO_FAR).limit(PROMOTED_AT_ONCE).subquery()),
)
PROMOTE = (
    _by_its_number(update(outbox))
    .where(
        or_(
            and_(
                outbox.c.state.in_([_written("claimed"), _written("waiting")]),
                outbox.c.due_at <= utc_now(),
            ),
            _TOO_FAR,
        )
    )
    .values(state="ready", due_at=None, **_UNCLAIMED)
)

DELETE = _by_its_number(delete(outbox)).where(_MINE)
KEEP = (
    _by_its_number(update(outbox))
    .where(_MINE)
    .values(state="sent", due_at=_from_now("keep"), **_UNCLAIMED)
)
RELEASE = (
    _by_its_number(update(outbox)).where(_MINE).values(state="ready", due_at=None, **_UNCLAIMED)
)
POSTPONE = (
    _by_its_number(update(outbox))
    .where(_MINE)
    .values(
        state="waiting",
        due_at=_from_now("delay"),
        # With none it would be a scheduled row, which lets the rest of its key pass.
        attempts=case((outbox.c.attempts == 0, 1), else_=outbox.c.attempts),
        last_error=bindparam("error"),
        **_UNCLAIMED,
    )
)
_BACK_OFF_VALUES: dict[str, Any] = {
    "attempts": bindparam("tried"),
    "failed_since": func.coalesce(outbox.c.failed_since, utc_now()),
    "last_error": bindparam("error"),
    **_UNCLAIMED,
}
_REFUSED = _by_its_number(update(outbox)).where(_MINE, outbox.c.seq == bindparam("row"))
BACK_OFF = _REFUSED.values(state="waiting", due_at=_from_now("delay"), **_BACK_OFF_VALUES)
_IS_GIVEN_UP = func.coalesce(outbox.c.failed_since, utc_now()) <= _from_now("patience")
BURY_OR_BACK_OFF = _REFUSED.values(
    state=case((_IS_GIVEN_UP, "dead"), else_="waiting"),
    due_at=case((_IS_GIVEN_UP, null()), else_=_from_now("delay")),
    **_BACK_OFF_VALUES,
)


def _earliest(state: State) -> ColumnElement[datetime | None]:
    return select(func.min(outbox.c.due_at)).where(in_state(state)).scalar_subquery()


LOOK = select(
    # Not EXISTS: where most rows are ready it would be read off the table itself.
    select(func.min(outbox.c.seq)).where(in_state("ready")).scalar_subquery(),
    _earliest("waiting"),
    _earliest("claimed"),
    utc_now(),
)
PRUNABLE = (
    select(outbox.c.seq).where(in_state("sent"), outbox.c.due_at <= utc_now()).limit(PRUNED_AT_ONCE)
)
PRUNE = _by_its_number(delete(outbox)).where(in_state("sent"))

DEAD = select(outbox.c.seq).where(in_state("dead")).order_by(outbox.c.seq)
RETRY = (
    _by_its_number(update(outbox))
    .where(in_state("dead"))
    .values(state="ready", attempts=0, failed_since=None, last_error=None, due_at=None)
)
DISCARD = _by_its_number(delete(outbox)).where(in_state("dead"))
