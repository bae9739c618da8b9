"""The statements that put rows into the outbox: one round trip each, however many rows there are.

On PostgreSQL each also wakes the relays. A notification is delivered when the transaction commits,
and PostgreSQL folds those of one transaction into one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    ARRAY,
    Connection,
    Float,
    Insert,
    LargeBinary,
    SmallInteger,
    Text,
    bindparam,
    func,
    insert,
    literal_column,
    null,
    select,
)
from sqlalchemy.sql.expression import ColumnElement, Executable

from evworker.broker.database.tables import UtcTime, outbox, seconds_from_now, utc_now
from evworker.broker.outbox.row import Row, Schedule

WAKE_CHANNEL = "evworker_outbox"
"""What relays LISTEN to on PostgreSQL."""

_WAKE = f"pg_notify('{WAKE_CHANNEL}', '')"

# MariaDB takes 16 MiB in a statement unless told otherwise, in which each byte may be escaped.
_MYSQL_ROWS_BYTES = 4 * 1024 * 1024

When = Literal["at_once", "delayed", "at"]


def when(schedule: Schedule) -> When:
    if schedule.delay_s is not None:
        return "delayed"
    return "at_once" if schedule.at is None else "at"


# By SQLAlchemy, on any database


def insert_rows(connection: Connection, rows: Sequence[Row], schedule: Schedule) -> None:
    due = {"due": schedule.at if schedule.delay_s is None else schedule.delay_s}
    dialect = connection.dialect.name
    if len(rows) == 1:
        parameters = {**rows[0]._asdict(), **due}
        connection.execute(_one(dialect, when(schedule)), parameters)
    elif dialect == "postgresql":
        parameters = {f"{name}s": column for name, column in _columns(rows).items()}
        first = rows[0]
        parameters |= {"priority": first.priority, "headers": first.headers, **due}
        connection.execute(_many_on_postgresql(when(schedule)), parameters)
    elif dialect == "sqlite":
        connection.execute(
            _one(dialect, when(schedule)), [{**row._asdict(), **due} for row in rows]
        )
    else:
        for part in _within_a_statement(rows):
            _insert_on_mysql(connection, part, schedule)


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = ("event_id", "topic", "key", "body")
    return {name: [getattr(row, name) for row in rows] for name in names}


def _within_a_statement(rows: Sequence[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    size = 0
    for row in rows:
        more = len(row.body) + len(row.headers or b"")
        if part and size + more > _MYSQL_ROWS_BYTES:
            yield part
            part, size = [], 0
        part.append(row)
        size += more
    yield part


def _state(when: When) -> str:
    return "ready" if when == "at_once" else "waiting"


def _due(when: When) -> ColumnElement[Any]:
    if when == "at_once":
        return null()
    if when == "delayed":
        return seconds_from_now(bindparam("due", type_=Float()))
    return bindparam("due", type_=UtcTime())


@cache
def _one(dialect: str, when: When) -> Insert:
    # The columns of Row come from the parameters.
    statement = insert(outbox).values(
        created_at=utc_now(),
        state=literal_column(f"'{_state(when)}'"),
        due_at=_due(when),
        attempts=literal_column("0"),
    )
    return statement.returning(literal_column(_WAKE)) if dialect == "postgresql" else statement


@cache
def _many_on_postgresql(when: When) -> Executable:
    """The rows as four arrays, so that it is one statement for any number of them."""
    arrays = func.unnest(
        bindparam("event_ids", type_=ARRAY(Text)),
        bindparam("topics", type_=ARRAY(Text)),
        bindparam("keys", type_=ARRAY(Text)),
        bindparam("bodys", type_=ARRAY(LargeBinary)),
    ).table_valued("event_id", "topic", "key", "body", with_ordinality="place", name="given")
    given = arrays.render_derived()
    values = select(
        given.c.event_id,
        given.c.topic,
        given.c.key,
        given.c.body,
        bindparam("priority", type_=SmallInteger()),
        bindparam("headers", type_=LargeBinary()),
        utc_now(),
        literal_column(f"'{_state(when)}'"),
        _due(when),
        literal_column("0"),
    ).order_by(given.c.place)
    into = ["event_id", "topic", "key", "body", "priority", "headers"]
    into += ["created_at", "state", "due_at", "attempts"]
    return insert(outbox).from_select(into, values).returning(literal_column(_WAKE))


def _insert_on_mysql(connection: Connection, rows: Sequence[Row], schedule: Schedule) -> None:
    # Written for the driver. SQLAlchemy compiles as many rows anew each time, a second for ten
    # thousand, and drivers make a round trip for each row of an `executemany` with expressions.
    place = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    due = "NULL"
    due_arguments: list[Any] = []
    if schedule.delay_s is not None:
        due = f"TIMESTAMPADD(MICROSECOND, 1000000 * {place}, UTC_TIMESTAMP(6))"
        due_arguments = [schedule.delay_s]
    elif schedule.at is not None:
        due, due_arguments = place, [schedule.at.astimezone(UTC).replace(tzinfo=None)]
    names = ", ".join(f"`{name}`" for name in Row._fields)
    fields = ", ".join([place] * len(Row._fields))
    values = f"({fields}, UTC_TIMESTAMP(6), '{_state(when(schedule))}', {due}, 0)"
    connection.exec_driver_sql(
        f"INSERT INTO {outbox.name} ({names}, created_at, state, due_at, attempts) "  # noqa: S608
        f"VALUES {', '.join([values] * len(rows))}",
        tuple(value for row in rows for value in (*row, *due_arguments)),
    )


# By a PostgreSQL driver itself


def one_for_driver(when: When) -> str:
    """Takes the fields of a Row, then the delay in seconds or the moment, as $1 and so on."""
    return (
        f"INSERT INTO {outbox.name} "  # noqa: S608
        "(event_id, topic, key, body, priority, headers, created_at, state, due_at, attempts) "
        "VALUES ($1::text, $2::text, $3::text, $4::bytea, $5::smallint, $6::bytea, "
        f"statement_timestamp(), '{_state(when)}', {_driver_due(when, 7)}, 0) RETURNING {_WAKE}"
    )


def many_for_driver(when: When) -> str:
    """Takes ids, topics, keys and bodies as arrays; priority and headers; the delay or moment."""
    return (
        f"INSERT INTO {outbox.name} "  # noqa: S608
        "(event_id, topic, key, body, priority, headers, created_at, state, due_at, attempts) "
        "SELECT event_id, topic, key, body, $5::smallint, $6::bytea, "
        f"statement_timestamp(), '{_state(when)}', {_driver_due(when, 7)}, 0 "
        "FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) WITH ORDINALITY "
        f"AS given (event_id, topic, key, body, place) ORDER BY place RETURNING {_WAKE}"
    )


def driver_arguments(rows: Sequence[Row], schedule: Schedule) -> list[Any]:
    first = rows[0]
    arguments: list[Any] = (
        list(first) if len(rows) == 1 else [*_columns(rows).values(), first.priority, first.headers]
    )
    if schedule.delay_s is not None:
        arguments.append(schedule.delay_s)
    elif schedule.at is not None:
        arguments.append(schedule.at)
    return arguments


def _driver_due(when: When, place: int) -> str:
    return {
        "at_once": "NULL",
        "delayed": f"statement_timestamp() + make_interval(secs => ${place}::float8)",
        "at": f"${place}::timestamptz",
    }[when]
