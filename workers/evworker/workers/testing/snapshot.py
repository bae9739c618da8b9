"""What a run has left behind, as values that can be compared: rows, events, dead letters.

Imported only with a database, because it brings SQLAlchemy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection, MetaData, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.tables import metadata as own

Rows = dict[str, Counter[str]]
"""By table, its rows as text, each with how often it is there."""


async def rows_in(engine: AsyncEngine, *, ignore: Collection[str] = ()) -> Rows:
    """All rows of all tables that are not evworker's.

    `ignore` names columns to leave out, as ``column`` or ``table.column``.
    """
    async with engine.connect() as connection:
        return await connection.run_sync(_rows, frozenset(ignore))


def _rows(connection: Connection, ignore: frozenset[str]) -> Rows:
    found = MetaData()
    found.reflect(connection)
    rows: Rows = {}
    for name, table in sorted(found.tables.items()):
        if name in own.tables:
            continue
        columns = [
            column
            for column in table.columns
            if column.name not in ignore and f"{name}.{column.name}" not in ignore
        ]
        result = connection.execute(select(*columns)) if columns else ()
        rows[name] = Counter(
            ", ".join(
                f"{column.name}={value!r}" for column, value in zip(columns, row, strict=True)
            )
            for row in result
        )
    return rows
