"""Whose transaction it is: what each kind of session is, and how rows get into its transaction.

A driver is looked for only if the program has loaded it, so that nothing is imported for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from evworker.broker.database.engine import explained
from evworker.broker.database.tables import outbox
from evworker.broker.errors import DatabaseError, DatabaseUnreachableError, TransactionError
from evworker.broker.outbox.insertion import (
    When,
    driver_arguments,
    insert_rows,
    many_for_driver,
    one_for_driver,
    when,
)
from evworker.broker.outbox.row import Row, Schedule

if TYPE_CHECKING:
    import psycopg

    class AsyncpgConnection(Protocol):
        """asyncpg's, or one of its pool's; it doesn't say what its types are."""

        def is_closed(self) -> bool: ...
        def is_in_transaction(self) -> bool: ...
        async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str: ...

    AnyAsyncSession: TypeAlias = (
        AsyncSession
        | AsyncConnection
        | async_scoped_session[AsyncSession]
        | AsyncpgConnection
        | psycopg.AsyncConnection[Any]
    )
    AnySyncSession: TypeAlias = (
        Session | Connection | scoped_session[Session] | psycopg.Connection[Any]
    )
    AnySession: TypeAlias = AnyAsyncSession | AnySyncSession


_SERVER_STATUS_IN_TRANS = 1
"""MySQL's flag for it, in all that its server answers."""

_Writing = Callable[[Any, Sequence[Row], Schedule], Awaitable[object] | None]


async def write(session: AnySession, rows: Sequence[Row], schedule: Schedule) -> None:
    """Write rows into the session's transaction; of sync sessions too, without suspending then.

    Raises TransactionError, SchemaError or DatabaseUnreachableError; what else the driver raises
    goes through. TypeError for what is no session.
    """
    kind: Any = type(session)
    writing = _writing(kind)
    try:
        written = writing(session, rows, schedule)
        if written is not None:
            await written
    except Exception as error:
        if (known := _as_ours(error)) is None:
            raise
        raise known from error


def write_sync(session: AnySyncSession, rows: Sequence[Row], schedule: Schedule) -> None:
    """Write rows into the transaction of a session that is not async. Raises as `write` does."""
    kind: Any = type(session)
    writing = _writing(kind)
    if writing in _AWAITED:
        raise TypeError(
            f"a {kind.__name__} has to be awaited: `await outbox.add(…)`, not `add_sync`"
        )
    try:
        writing(session, rows, schedule)
    except Exception as error:
        if (known := _as_ours(error)) is None:
            raise
        raise known from error


def _as_ours(error: Exception) -> DatabaseError | None:
    if isinstance(error, DatabaseError):
        return None
    return explained(error, "can't write to the outbox")


@cache
def _writing(kind: type) -> _Writing:
    for known, writing in _KINDS.items():
        module, _, name = known.rpartition(".")
        loaded = sys.modules.get(module)
        if loaded is not None and issubclass(kind, getattr(loaded, name)):
            return writing
    if issubclass(kind, (AsyncEngine, Engine)):
        raise TransactionError(
            f"the {kind.__name__} has no transaction of its own, so nothing was written; write "
            "`async with engine.begin() as connection: await outbox.add(connection, event)`"
        )
    if kind.__name__.endswith("Pool"):
        raise TransactionError(
            f"the {kind.__name__} has no transaction of its own, so nothing was written; take a "
            "connection from it, and begin a transaction there"
        )
    raise TypeError(
        f"a {kind.__name__} is no session that the outbox knows; give the session or connection "
        "whose transaction the event belongs to: of SQLAlchemy, asyncpg or psycopg"
    )


# SQLAlchemy


async def _by_async_session(session: AsyncSession, rows: Sequence[Row], schedule: Schedule) -> None:
    await session.run_sync(_by_session, rows, schedule)


async def _by_async_scoped_session(
    session: async_scoped_session[AsyncSession], rows: Sequence[Row], schedule: Schedule
) -> None:
    await session().run_sync(_by_session, rows, schedule)


async def _by_async_connection(
    connection: AsyncConnection, rows: Sequence[Row], schedule: Schedule
) -> None:
    await connection.run_sync(_by_connection, rows, schedule)


def _by_scoped_session(
    session: scoped_session[Session], rows: Sequence[Row], schedule: Schedule
) -> None:
    _by_session(session(), rows, schedule)


def _by_session(session: Session, rows: Sequence[Row], schedule: Schedule) -> None:
    # A session of several databases is asked for the one that our table is bound to.
    arguments = None if session.bind is not None else {"clause": outbox}
    _by_connection(session.connection(bind_arguments=arguments), rows, schedule)


def _by_connection(connection: Connection, rows: Sequence[Row], schedule: Schedule) -> None:
    if _commits_by_itself(connection):
        raise TransactionError(
            "the connection is in AUTOCOMMIT, so there is no transaction and nothing was written; "
            "use a connection or an engine without isolation_level='AUTOCOMMIT'"
        )
    if _its_driver_commits_by_itself(connection):
        raise TransactionError(
            "the connection's driver is in autocommit, so there is no transaction and nothing was "
            "written; leave autocommit (of SQLite: isolation_level=None) out of the URL and of the "
            "engine's connect_args"
        )
    insert_rows(connection, rows, schedule)


def _commits_by_itself(connection: Connection) -> bool:
    level = connection.get_execution_options().get("isolation_level")
    if level is None:  # then the engine's; SQLAlchemy has no public word for it
        level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    return level == "AUTOCOMMIT"


def _its_driver_commits_by_itself(connection: Connection) -> bool:
    """As a URL or connect_args may have asked it to, of which SQLAlchemy takes no notice."""
    driver: Any = connection.connection.driver_connection
    if not _is_in_autocommit(connection.dialect.name, driver):
        return False
    # A listener may begin what the driver does not, as SQLAlchemy's recipe for SQLite does.
    begun = None if connection.in_transaction() else connection.begin()
    if _has_begun(connection.dialect.name, driver):
        return False
    if begun is not None:
        begun.rollback()
    return True


# What a driver keeps in memory, and answers without asking the server; one that is not known to
# tell is taken for a good one.


def _is_in_autocommit(dialect: str, driver: Any) -> bool:
    match dialect:
        case "sqlite":
            return getattr(driver, "isolation_level", "") is None
        case "mysql" | "mariadb":
            return hasattr(driver, "get_autocommit") and bool(driver.get_autocommit())
        case _:
            return bool(getattr(driver, "autocommit", False))


def _has_begun(dialect: str, driver: Any) -> bool:
    match dialect:
        case "sqlite":
            return bool(driver.in_transaction)
        case "mysql" | "mariadb":
            return bool(getattr(driver, "server_status", 0) & _SERVER_STATUS_IN_TRANS)
        case _:
            idle = 0  # libpq's PQTRANS_IDLE
            return getattr(getattr(driver, "info", None), "transaction_status", idle) != idle


# asyncpg and psycopg


def _by_asyncpg(
    connection: AsyncpgConnection, rows: Sequence[Row], schedule: Schedule
) -> Awaitable[object]:
    if connection.is_closed():
        raise DatabaseUnreachableError(
            "can't write to the outbox: the asyncpg connection is closed"
        )
    if not connection.is_in_transaction():
        raise TransactionError(
            "the asyncpg connection is in no transaction, so nothing was written; write "
            "`async with connection.transaction(): await outbox.add(connection, event)`"
        )
    statement = _asyncpg_statement(len(rows) == 1, when(schedule))
    return connection.execute(statement, *driver_arguments(rows, schedule))


async def _by_async_psycopg(connection: Any, rows: Sequence[Row], schedule: Schedule) -> None:
    await connection.execute(*_for_psycopg(connection, rows, schedule))


def _by_psycopg(connection: Any, rows: Sequence[Row], schedule: Schedule) -> None:
    connection.execute(*_for_psycopg(connection, rows, schedule))


def _for_psycopg(
    connection: Any, rows: Sequence[Row], schedule: Schedule
) -> tuple[str, dict[str, Any]]:
    idle = connection.info.transaction_status == sys.modules["psycopg"].pq.TransactionStatus.IDLE
    if connection.autocommit and idle:
        raise TransactionError(
            "the psycopg connection is in autocommit and no transaction, so nothing was written; "
            "write `with connection.transaction(): …` around what belongs together"
        )
    statement = _psycopg_statement(len(rows) == 1, when(schedule))
    arguments = driver_arguments(rows, schedule)
    return statement, {f"p{place}": value for place, value in enumerate(arguments, 1)}


@cache
def _asyncpg_statement(one: bool, when: When) -> str:  # noqa: FBT001
    return one_for_driver(when) if one else many_for_driver(when)


@cache
def _psycopg_statement(one: bool, when: When) -> str:  # noqa: FBT001
    return re.sub(r"\$(\d)", r"%(p\1)s", _asyncpg_statement(one, when))


_KINDS: dict[str, _Writing] = {
    "sqlalchemy.ext.asyncio.AsyncSession": _by_async_session,
    "sqlalchemy.ext.asyncio.AsyncConnection": _by_async_connection,
    "sqlalchemy.ext.asyncio.async_scoped_session": _by_async_scoped_session,
    "sqlalchemy.orm.Session": _by_session,
    "sqlalchemy.orm.scoped_session": _by_scoped_session,
    "sqlalchemy.Connection": _by_connection,
    "asyncpg.Connection": _by_asyncpg,
    "asyncpg.pool.PoolConnectionProxy": _by_asyncpg,
    "psycopg.AsyncConnection": _by_async_psycopg,
    "psycopg.Connection": _by_psycopg,
}

_AWAITED = frozenset((_by_async_session, _by_async_connection, _by_async_scoped_session))
_AWAITED |= {_by_asyncpg, _by_async_psycopg}
