"""evworker's tables in a user's database: made, printed, and told what they lack.

A column that a later version adds is nullable or has a default of the server's, so that the
statement that `check_tables` names can be run on a table with rows in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Inspector, Table, insert, inspect, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from evworker.broker.database.engine import address_of, database_errors
from evworker.broker.database.tables import locks, metadata
from evworker.broker.errors import DatabaseUrlError, SchemaError

if TYPE_CHECKING:
    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine

OUTBOX_LOCK = "outbox"
"""The row of `locks` that a relay locks while it claims."""

_DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": postgresql.dialect,
    "mysql": mysql.dialect,
    "mariadb": mysql.dialect,
    "sqlite": sqlite.dialect,
}

# Two that make the same table at once would fail in one of them, so they queue.
_ONE_AT_A_TIME = {
    "postgresql": "SELECT pg_advisory_xact_lock(hashtext('evworker tables'))",
    "mysql": "SELECT GET_LOCK('evworker tables', 60)",
    "mariadb": "SELECT GET_LOCK('evworker tables', 60)",
    "sqlite": "BEGIN IMMEDIATE",
}
_AND_FREE = dict.fromkeys(("mysql", "mariadb"), "SELECT RELEASE_LOCK('evworker tables')")


async def make_tables(engine: AsyncEngine) -> list[str]:
    """Make the tables and indexes that are missing; returns the names of the tables made.

    Any number of processes may do so at once. A table that is there keeps the columns it has, and
    `check_tables` tells what it lacks. Raises a DatabaseError.
    """
    with database_errors(engine, "make evworker's tables"):
        async with engine.begin() as connection:
            return await connection.run_sync(_make)


def _make(connection: Connection) -> list[str]:
    connection.exec_driver_sql(_ONE_AT_A_TIME[connection.dialect.name])
    try:
        inspector = inspect(connection)
        missing = _missing_tables(inspector)
        metadata.create_all(connection, tables=missing)
        for table in metadata.sorted_tables:
            if table not in missing:
                _make_missing_indexes(connection, inspector, table)
        lock = select(locks.c.name).where(locks.c.name == OUTBOX_LOCK)
        if connection.execute(lock).first() is None:
            connection.execute(insert(locks).values(name=OUTBOX_LOCK))
    finally:
        if free := _AND_FREE.get(connection.dialect.name):
            connection.exec_driver_sql(free)
    return [table.name for table in missing]


def _make_missing_indexes(connection: Connection, inspector: Inspector, table: Table) -> None:
    columns = {column["name"] for column in inspector.get_columns(table.name)}
    found = {index["name"] for index in inspector.get_indexes(table.name)}
    for index in table.indexes:
        if index.name not in found and {column.name for column in index.columns} <= columns:
            index.create(connection)


def ddl(dialect: str) -> str:
    """The statements that make everything in an empty database, for a migration by hand.

    `dialect` is "postgresql", "mysql", "mariadb" or "sqlite"; raises DatabaseUrlError for another.
    """
    if dialect not in _DIALECTS:
        known = ", ".join(_DIALECTS)
        raise DatabaseUrlError(f"{dialect!r} is no database that evworker knows; it knows {known}")
    compiler = _DIALECTS[dialect]()
    statements = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=compiler)).strip())
        statements += [
            str(CreateIndex(index).compile(dialect=compiler))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
    statements.append(f"INSERT INTO {locks.name} (name) VALUES ('{OUTBOX_LOCK}')")  # noqa: S608
    return "".join(f"{statement};\n\n" for statement in statements)


async def check_tables(engine: AsyncEngine) -> None:
    """Raise SchemaError, with what to do about it, unless every table has every column.

    Raises another DatabaseError when the database can't be asked.
    """
    with database_errors(engine, "look for evworker's tables"):
        async with engine.connect() as connection:
            fault = await connection.run_sync(_fault)
    if fault:
        raise SchemaError(f"{fault} (in {address_of(engine)})")


def _fault(connection: Connection) -> str | None:
    inspector = inspect(connection)
    if missing := _missing_tables(inspector):
        names = ", ".join(table.name for table in missing)
        return (
            f"evworker's tables are missing: {names}; "
            "run `evworker outbox init`, or have your migrations make them"
        )
    if additions := _missing_columns(inspector, connection.dialect):
        return (
            "evworker's tables were made by an older version of it; stop its workers and run\n"
            + "".join(f"  {statement};\n" for statement in additions)
        )
    return None


def _missing_tables(inspector: Inspector) -> list[Table]:
    return [table for table in metadata.sorted_tables if not inspector.has_table(table.name)]


def _missing_columns(inspector: Inspector, dialect: Dialect) -> list[str]:
    statements = []
    for table in metadata.sorted_tables:
        found = {column["name"] for column in inspector.get_columns(table.name)}
        statements += [
            f"ALTER TABLE {table.name} ADD COLUMN {CreateColumn(column).compile(dialect=dialect)}"
            for column in table.columns
            if column.name not in found
        ]
    return statements
