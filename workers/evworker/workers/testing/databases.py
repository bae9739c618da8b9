"""The database of a test: an SQLite file of its own, unless it names another.

Imported only if a test has a database, because it brings SQLAlchemy.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import MetaData, event, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.database.tables import outbox, utc_now

Fresh = Callable[[], AbstractAsyncContextManager[str | AsyncEngine]]
_DELAYED = (outbox.c.state == "waiting", outbox.c.attempts == 0)

Tables = MetaData | Callable[[AsyncEngine], Awaitable[Any]]


@asynccontextmanager
async def open_database(
    database: str | AsyncEngine | Fresh | None, tables: Tables | None
) -> AsyncIterator[AsyncEngine]:
    """An engine with evworker's tables and the test's own made, as far as they are missing.

    An engine that is given is left open.
    """
    if database is None:
        with TemporaryDirectory(prefix="evworker-test-") as folder:
            async with open_database(f"sqlite:///{folder}/test.db", tables) as engine:
                yield engine
    elif isinstance(database, AsyncEngine):
        await _make(database, tables)
        yield database
    elif isinstance(database, str):
        engine = open_engine(database)
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _hurry)
        try:
            await _make(engine, tables)
            yield engine
        finally:
            await engine.dispose()
    else:
        async with database() as fresh, open_database(fresh, tables) as engine:
            yield engine


async def first_delayed(engine: AsyncEngine) -> datetime | None:
    """When the outbox is to send the first of what it delays. What was refused is not delayed."""
    async with engine.connect() as connection:
        first: datetime | None = await connection.scalar(
            select(func.min(outbox.c.due_at)).where(*_DELAYED)
        )
    return first


async def skip_delay(engine: AsyncEngine, first: datetime) -> None:
    """Have what the outbox delays until then be due now."""
    async with engine.begin() as connection:
        due = update(outbox).where(*_DELAYED, outbox.c.due_at <= first)
        await connection.execute(due.values(due_at=utc_now()))


async def _make(engine: AsyncEngine, tables: Tables | None) -> None:
    await make_tables(engine)
    if isinstance(tables, MetaData):
        async with engine.begin() as connection:
            await connection.run_sync(tables.create_all)
    elif tables is not None:
        made = tables(engine)
        if inspect.isawaitable(made):
            await made


def _hurry(connection: Any, _record: object) -> None:
    # What a test writes need not outlive a power cut.
    connection.execute("PRAGMA synchronous=OFF").close()
