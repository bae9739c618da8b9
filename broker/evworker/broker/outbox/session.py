"""Whose transaction it is: what each kind of session is, and how rows get into its transaction.

A driver is looked for only if the program has loaded it, so that nothing is imported for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from evworker.broker.database.engine import explained
from evworker.broker.database.tables import outbox
from evworker.broker.errors import DatabaseError, TransactionError
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
    import asyncpg
    import psycopg
    from asyncpg.pool import PoolConnectionProxy

    AnyAsyncSession: TypeAlias = (
        AsyncSession
        | AsyncConnection
        | async_scoped_session[AsyncSession]
        | asyncpg.Connection[Any]
        | PoolConnectionProxy[Any]
        | psycopg.AsyncConnection[Any]
    )
    AnySyncSession: TypeAlias = (
        Session | Connection | scoped_session[Session] | psycopg.Connection[Any]
    )
    AnySession: TypeAlias = AnyAsyncSession | AnySyncSession


async def write(session: AnySession, rows: Sequence[Row], schedule: Schedule) -> None:
    """Write rows into the session's transaction; of sync sessions too, without suspending then.

    Raises TransactionError, SchemaError or DatabaseUnreachableError; what else the driver raises
    goes through.
    """
    with _errors():
        match _unscoped(session):
            case AsyncSession() as opened:
                await opened.run_sync(_write_by_session, rows, schedule)
            case AsyncConnection() as opened:
                await opened.run_sync(_write_by_connection, rows, schedule)
            case opened if _is(opened, "asyncpg", "Connection"):
                await _write_by_asyncpg(opened, rows, schedule)
            case opened if _is(opened, "psycopg", "AsyncConnection"):
                await opened.execute(*_for_psycopg(opened, rows, schedule))
            case opened:
                _write_by_sync(opened, rows, schedule)


def write_sync(session: AnySyncSession, rows: Sequence[Row], schedule: Schedule) -> None:
    """Write rows into the transaction of a session that is not async. Raises as `write` does."""
    with _errors():
        _write_by_sync(_unscoped(session), rows, schedule)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except DatabaseError:
        raise
    except Exception as error:
        known = explained(error, "can't write to the outbox")
        if known is None:
            raise
        raise known from error


def _unscoped(session: Any) -> Any:
    return session() if isinstance(session, (scoped_session, async_scoped_session)) else session


def _is(session: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(session, getattr(loaded, name))


def _write_by_sync(session: Any, rows: Sequence[Row], schedule: Schedule) -> None:
    match session:
        case Session():
            _write_by_session(session, rows, schedule)
        case Connection():
            _write_by_connection(session, rows, schedule)
        case _ if _is(session, "psycopg", "Connection"):
            session.execute(*_for_psycopg(session, rows, schedule))
        case _:
            raise _no_session(session)


def _no_session(session: object) -> Exception:
    name = type(session).__name__
    if isinstance(session, (AsyncSession, AsyncConnection)) or _is_async_driver(session):
        return TypeError(f"a {name} has to be awaited: `await outbox.add(…)`, not `add_sync`")
    if isinstance(session, (AsyncEngine, Engine)):
        return TransactionError(
            f"the {name} has no transaction of its own, so nothing was written; write "
            "`async with engine.begin() as connection: await outbox.add(connection, event)`"
        )
    if _is(session, "asyncpg", "Pool"):
        return TransactionError(
            "the pool has no transaction of its own, so nothing was written; write `async with "
            "pool.acquire() as connection, connection.transaction(): …`"
        )
    return TypeError(
        f"a {name} is no session that the outbox knows; give the session or connection whose "
        "transaction the event belongs to: of SQLAlchemy, asyncpg or psycopg"
    )


def _is_async_driver(session: object) -> bool:
    return _is(session, "asyncpg", "Connection") or _is(session, "psycopg", "AsyncConnection")


# SQLAlchemy


def _write_by_session(session: Session, rows: Sequence[Row], schedule: Schedule) -> None:
    # A session of several databases is asked for the one that our table is bound to.
    arguments = None if session.bind is not None else {"clause": outbox}
    connection = session.connection(bind_arguments=arguments)
    _write_by_connection(connection, rows, schedule)


def _write_by_connection(connection: Connection, rows: Sequence[Row], schedule: Schedule) -> None:
    if _commits_by_itself(connection):
        raise TransactionError(
            "the connection is in AUTOCOMMIT, so there is no transaction and nothing was written; "
            "use a connection or an engine without isolation_level='AUTOCOMMIT'"
        )
    insert_rows(connection, rows, schedule)


def _commits_by_itself(connection: Connection) -> bool:
    level = connection.get_execution_options().get("isolation_level")
    if level is None:  # then the engine's; SQLAlchemy has no public word for it
        level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    return level == "AUTOCOMMIT"


# asyncpg and psycopg


async def _write_by_asyncpg(connection: Any, rows: Sequence[Row], schedule: Schedule) -> None:
    if not connection.is_in_transaction():
        raise TransactionError(
            "the asyncpg connection is in no transaction, so nothing was written; write "
            "`async with connection.transaction(): await outbox.add(connection, event)`"
        )
    statement = _asyncpg_statement(len(rows) == 1, when(schedule))
    await connection.execute(statement, *driver_arguments(rows, schedule))


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
