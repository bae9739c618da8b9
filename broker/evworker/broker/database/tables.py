"""The tables that evworker keeps in a user's database, as SQLAlchemy metadata that Alembic can see.

Each row of the outbox is in one of five states:

::

    add ──► ready ──claim──► claimed ──confirmed──► deleted, or sent until its retention ends
     │        ▲  ▲              │ │
     │        │  └─lease over───┘ └──refused──► waiting ──attempts and time used up──► dead
     └─at=──► waiting ──due─────┘
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler

State = Literal["ready", "claimed", "waiting", "dead", "sent"]

ID_CHARACTERS = 255
"""The longest event id, topic and key: AMQP's limit for short strings, and an index of MySQL's."""


class UtcTime(TypeDecorator[datetime]):
    """A moment, to the microsecond; with its time zone in Python, in UTC in every database."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class seconds_from_now(FunctionElement[datetime]):  # noqa: N801 - SQL functions are written so
    """So many seconds from now by the database's clock, the only one that all relays share.

    As the statement began, not as it came to this row: only what is stable can be looked up in an
    index.
    """

    type = UtcTime()
    inherit_cache = True


def utc_now() -> seconds_from_now:
    return seconds_from_now(0.0)


@compiles(seconds_from_now, "postgresql")
def _on_postgresql(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(statement_timestamp() + make_interval(secs => {seconds}))"


@compiles(seconds_from_now, "mysql", "mariadb")
def _on_mysql(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"TIMESTAMPADD(MICROSECOND, 1000000 * {seconds}, UTC_TIMESTAMP(6))"


@compiles(seconds_from_now, "sqlite")
def _on_sqlite(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    # Milliseconds are all it has; in the form in which SQLAlchemy writes a time, to be compared.
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


metadata = MetaData()
"""What Alembic is to compare with: ``target_metadata = [Base.metadata, evworker_metadata]``."""

# SQLite counts in a primary key only if it is called INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_Bytes = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
# Ids and keys are compared byte by byte: "a" and "A" are two customers.
_Name = String(ID_CHARACTERS).with_variant(
    mysql.VARCHAR(ID_CHARACTERS, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_Long = Text().with_variant(mysql.TEXT(charset="utf8mb4"), "mysql", "mariadb")

outbox = Table(
    "evworker_outbox",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("event_id", _Name, nullable=False),
    Column("topic", _Name, nullable=False),
    Column("key", _Name),
    Column("body", _Bytes, nullable=False),
    Column("priority", SmallInteger),
    Column("headers", _Bytes),
    Column("created_at", UtcTime, nullable=False),
    Column("state", String(8), nullable=False),
    # When somebody has to look at the row again: the end of its wait, of its lease, or of its
    # retention. None while it is ready or dead.
    Column("due_at", UtcTime),
    Column("claim", String(36)),
    Column("claimed_by", String(255)),
    Column("attempts", Integer, nullable=False),
    Column("failed_since", UtcTime),
    Column("last_error", _Long),
    # Each row in as few of them as it is looked up by: every entry is written at every step.
    Index(
        "evworker_outbox_in_order",
        "state",
        "seq",
        postgresql_where=text("state IN ('ready', 'dead')"),
    ),
    Index(
        "evworker_outbox_by_due_time",
        "state",
        "due_at",
        "seq",
        postgresql_where=text("due_at IS NOT NULL"),
    ),
    Index(
        "evworker_outbox_by_key", "key", "state", "seq", postgresql_where=text("key IS NOT NULL")
    ),
)
"""Events that a transaction has committed and that are to be published.

`body` is the envelope as it goes onto the wire; `headers` is a JSON object; `claim` is drawn anew
for each claim, so that only who made it can end it.
"""

inbox = Table(
    "evworker_inbox",
    metadata,
    Column("consumer", _Name, primary_key=True),
    Column("event_id", _Name, primary_key=True),
    Column("handled_at", UtcTime, nullable=False),
    Index("evworker_inbox_by_time", "handled_at"),
)
"""The events that each consumer has applied."""

relays = Table(
    "evworker_relays",
    metadata,
    Column("relay", String(36), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("sent", BigInteger, nullable=False),
    Column("per_second", Integer, nullable=False),
)
"""The relays that are at work; each says so every few seconds."""

locks = Table("evworker_locks", metadata, Column("name", String(32), primary_key=True))
"""A row for each thing that only one may do at a time, to be locked by whoever does it."""
