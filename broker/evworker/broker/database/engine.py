"""A user's database: reached by its URL, over one of three drivers, and told in our own errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

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
_AWAY = ("08", "57P01", "57P02", "57P03", "53300")
_AWAY_NUMBERS = (1040, 1053, 1927, 2002, 2003, 2006, 2013, 2055)
_REFUSED = ("28", "3D000")
_REFUSED_NUMBERS = (1044, 1045, 1049, 1130)
_NO_TABLE = ("42P01", "42703")
_NO_TABLE_NUMBERS = (1054, 1146)

_BUSY_TIMEOUT_MS = 10_000


def open_engine(url: str, *, connections: int = 5) -> AsyncEngine:
    """An engine for ``postgresql://``, ``mysql://``, ``mariadb://`` or ``sqlite:///`` URLs.

    Connects to nothing yet; `connections` is the most it will hold at once. Raises
    DatabaseUrlError, which names the extra to install when the driver is missing.
    """
    address = _with_driver(url)
    if address.get_backend_name() == "sqlite":
        engine = create_async_engine(address, connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000})
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    timeout = "timeout" if address.get_driver_name() == "asyncpg" else "connect_timeout"
    return create_async_engine(
        address,
        pool_size=connections,
        max_overflow=0,
        connect_args={timeout: int(CONNECT_TIMEOUT_S)},
    )


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


def _prepare_sqlite(connection: object, _record: object) -> None:
    # Readers don't wait for the writer, and a commit is on disk when it returns.
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DBAPI connection of any driver
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


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
    state = getattr(driver_error, "sqlstate", None) or ""
    first = next(iter(driver_error.args), None)
    number = first if isinstance(first, int) else 0
    text = str(driver_error).strip() or type(driver_error).__name__
    told = f"{what}: {text}"
    if state.startswith(_REFUSED) or number in _REFUSED_NUMBERS:
        return DatabaseRefusedError(told)
    if state in _NO_TABLE or number in _NO_TABLE_NUMBERS or "no such table" in text:
        return SchemaError(
            f"{told}; run `evworker outbox init`, or have your migrations make the tables"
        )
    if (
        isinstance(error, (OSError, PoolTimeoutError, InterfaceError))
        or (isinstance(error, DBAPIError) and error.connection_invalidated)
        or state.startswith(_AWAY)
        or number in _AWAY_NUMBERS
        or "database is locked" in text
        or "unable to open database" in text
    ):
        return DatabaseUnreachableError(told)
    return None
