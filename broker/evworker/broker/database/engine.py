"""A user's database: reached by its URL, over one of three drivers, and told in our own errors."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from evworker.broker.errors import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    DatabaseUrlError,
    SchemaError,
)

CONNECT_TIMEOUT_S = 10.0

# By the scheme of the URL: the driver taken where it names none, its module, and our extra.
_DRIVERS = {
    "postgresql": ("asyncpg", "postgres"),
    "postgres": ("asyncpg", "postgres"),
    "mysql": ("aiomysql", "mysql"),
    "mariadb": ("aiomysql", "mysql"),
    "sqlite": ("aiosqlite", "sqlite"),
}

# SQLSTATEs (https://www.postgresql.org/docs/current/errcodes-appendix.html) and MySQL's numbers
# (https://mariadb.com/kb/en/mariadb-error-code-reference/).
# A server that is full, or has become a standby that can't be written to, is as good as away.
_AWAY = ("08", "53", "57P01", "57P02", "57P03", "25006")
_AWAY_NUMBERS = (1021, 1040, 1053, 1203, 1226, 1290, 1836, 1927, 2002, 2003, 2006, 2013, 2055)
_REFUSED = ("28", "3D000", "42501")
_REFUSED_NUMBERS = (1044, 1045, 1049, 1130, 1142, 1227)
_NO_TABLE = ("42P01", "42703")
_NO_TABLE_NUMBERS = (1054, 1146)

# What drivers raise without a code.
_AWAY_TEXT = re.compile(
    "database is locked|unable to open database|disk is full"
    "|connection (is|was|has been) closed|connection is lost|Not connected|cannot switch to state"
    "|released back to the pool"  # asyncpg's pool takes back a connection that it has lost
)
_REFUSED_TEXT = re.compile(
    'password authentication failed|(role|database) ".*" does not exist|no pg_hba.conf entry'
    "|readonly database"
)
_NO_TABLE_TEXT = re.compile("no such table|no such column|has no column named")

_BUSY_TIMEOUT_MS = 10_000
_ENDS_WITHIN_S = 1.0


def open_engine(url: str, *, connections: int = 5) -> AsyncEngine:
    """An engine for ``postgresql://``, ``mysql://``, ``mariadb://`` or ``sqlite:///`` URLs.

    Connects to nothing yet; `connections` is the most it will hold at once. Raises
    DatabaseUrlError, which names the extra to install when the driver is missing.
    """
    address = _with_driver(url)
    if address.get_backend_name() == "sqlite":
        engine = create_async_engine(
            address,
            connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "async_creator_fn": _open_sqlite},
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    return create_async_engine(
        address,
        pool_size=connections,
        max_overflow=0,
        connect_args=_with_deadline(address.get_driver_name()),
    )


def _with_deadline(driver: str) -> dict[str, Any]:
    if driver == "aiomysql":
        return {"async_creator_fn": _connect_by_aiomysql}
    return {"timeout" if driver == "asyncpg" else "connect_timeout": int(CONNECT_TIMEOUT_S)}


async def _connect_by_aiomysql(**arguments: Any) -> Any:
    # Its own time-out ends when the port is open, and a server that says nothing then is waited
    # for without end.
    connection = importlib.import_module("aiomysql").Connection(**arguments)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await connection._connect()  # noqa: SLF001 - as aiomysql.connect does
    except BaseException:
        connection.close()
        raise
    return connection


def _with_driver(url: str) -> URL:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise DatabaseUrlError(
            "the database URL can't be read; write it as "
            "'postgresql://user:password@host/database' or 'sqlite:///file.db'"
        ) from error
    scheme, _, driver = address.drivername.partition("+")
    if scheme not in _DRIVERS:
        known = ", ".join(name for name in _DRIVERS if name != "postgres")
        raise DatabaseUrlError(f"{scheme!r} is no database that evworker knows; it knows {known}")
    default, extra = _DRIVERS[scheme]
    driver = driver or default
    if importlib.util.find_spec(driver) is None:
        raise DatabaseUrlError(
            f"the driver {driver!r} for {scheme} is not installed; "
            f"pip install 'evworker[{extra}]' brings {default!r}"
        )
    scheme = "postgresql" if scheme == "postgres" else scheme
    return address.set(drivername=f"{scheme}+{driver}")


async def _open_sqlite(*arguments: Any, **options: Any) -> Any:
    """A connection of aiosqlite; one that can't be opened leaves no thread behind.

    Such a thread would tell the loop that it has ended, and complain on stderr if that has gone.
    """
    import aiosqlite  # noqa: PLC0415 - as a driver it is loaded only by who takes it

    connection: Any = aiosqlite.connect(*arguments, **options)
    thread = connection if isinstance(connection, Thread) else connection._thread  # noqa: SLF001
    thread.daemon = True
    try:
        return await connection
    except BaseException:
        await asyncio.to_thread(thread.join, _ENDS_WITHIN_S)
        raise


def _prepare_sqlite(connection: object, _record: object) -> None:
    # Readers don't wait for the writer, and a commit is on disk when it returns.
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DBAPI connection of any driver
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


@asynccontextmanager
async def read_committed(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that locks the rows it changes, and no gaps between them."""
    # The level is set on the connection, not the engine: there a connection that is lost just
    # then would never come back to its pool. SQLite has one writer, and no such level.
    level = {} if engine.dialect.name == "sqlite" else {"isolation_level": "READ COMMITTED"}
    async with engine.connect() as opened:
        connection = await opened.execution_options(**level)
        async with connection.begin():
            yield connection


def address_of(engine: AsyncEngine) -> str:
    """Where the database is, without the password."""
    return engine.url.set(drivername=engine.url.get_backend_name()).render_as_string()


@contextmanager
def database_errors(engine: AsyncEngine, doing: str) -> Iterator[None]:
    """Raise what the driver raises as a DatabaseError: unreachable, refused, or without our tables.

    What is none of these, such as a constraint that was hurt, goes through as it is.
    """
    try:
        yield
    except DatabaseError:
        raise
    except Exception as error:
        known = explained(error, f"can't {doing} in {address_of(engine)}")
        if known is None:
            raise
        raise known from error


def explained(error: Exception, what: str) -> DatabaseError | None:
    """The error as one of ours, if it tells of the database and not of one statement."""
    driver_error = error.orig if isinstance(error, DBAPIError) and error.orig else error
    text = str(driver_error).strip() or type(driver_error).__name__
    told = f"{what}: {text}"
    if _is_one_of(driver_error, text, _REFUSED, _REFUSED_NUMBERS, _REFUSED_TEXT):
        return DatabaseRefusedError(told)
    if _is_one_of(driver_error, text, _NO_TABLE, _NO_TABLE_NUMBERS, _NO_TABLE_TEXT):
        return SchemaError(
            f"{told}; run `evworker outbox init`, or have your migrations make the tables"
        )
    if (
        isinstance(error, (OSError, PoolTimeoutError))
        or (isinstance(error, DBAPIError) and error.connection_invalidated)
        or _is_one_of(driver_error, text, _AWAY, _AWAY_NUMBERS, _AWAY_TEXT)
        or _is_a_lost_connection(driver_error)
    ):
        return DatabaseUnreachableError(told)
    return None


def _is_one_of(
    error: BaseException,
    text: str,
    states: tuple[str, ...],
    numbers: tuple[int, ...],
    texts: re.Pattern[str],
) -> bool:
    if state := getattr(error, "sqlstate", None):
        return bool(state.startswith(states))
    first = next(iter(error.args), None)
    if isinstance(first, int) and first:
        return first in numbers
    return texts.search(text) is not None


def _is_a_lost_connection(error: BaseException) -> bool:
    # psycopg's has no code exactly when no server spoke; PyMySQL says 0 of a connection it closed.
    module, name = type(error).__module__.partition(".")[0], type(error).__name__
    return (
        module == "psycopg" and name == "OperationalError" and getattr(error, "sqlstate", 1) is None
    ) or (module == "pymysql" and name == "InterfaceError" and error.args[:1] == (0,))
