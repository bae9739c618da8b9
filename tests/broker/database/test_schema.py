"""The tables: made once by however many at once, printed, and refused when they lack something."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import OUTBOX_LOCK, check_tables, ddl, make_tables
from evworker.broker.database.tables import locks, metadata
from evworker.broker.errors import DatabaseUrlError, SchemaError


async def names_of_indexes(engine: AsyncEngine) -> set[str | None]:
    async with engine.connect() as connection:
        found = await connection.run_sync(
            lambda sync: [inspect(sync).get_indexes(name) for name in metadata.tables]
        )
    return {index["name"] for indexes in found for index in indexes}


async def lock_rows(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(select(locks.c.name))).scalars())


async def test_made_tables_are_complete_and_made_once(database_url: str) -> None:
    engine = open_engine(database_url)
    assert set(await make_tables(engine)) == set(metadata.tables)
    assert await make_tables(engine) == []
    await check_tables(engine)
    assert await lock_rows(engine) == [OUTBOX_LOCK]
    await engine.dispose()


async def test_several_may_make_the_tables_at_once(database_url: str) -> None:
    engines = [open_engine(database_url) for _ in range(4)]
    made = await asyncio.gather(*(make_tables(engine) for engine in engines))
    assert sorted(map(len, made)) == [0, 0, 0, len(metadata.tables)]
    assert await lock_rows(engines[0]) == [OUTBOX_LOCK]
    for engine in engines:
        await engine.dispose()


async def test_what_half_of_an_attempt_left_out_is_made_by_the_next(engine: AsyncEngine) -> None:
    complete = await names_of_indexes(engine)
    async with engine.begin() as connection:
        on_table = " ON evworker_outbox" if engine.dialect.name in ("mysql", "mariadb") else ""
        await connection.execute(text(f"DROP INDEX evworker_outbox_by_key{on_table}"))
        await connection.execute(text("DROP TABLE evworker_relays"))
    assert await make_tables(engine) == ["evworker_relays"]
    assert await names_of_indexes(engine) == complete


async def test_the_printed_statements_make_what_is_checked(database_url: str) -> None:
    engine = open_engine(database_url)
    async with engine.begin() as connection:
        for statement in ddl(engine.dialect.name).split(";\n"):
            if statement.strip():
                await connection.execute(text(statement))
    await check_tables(engine)
    assert await make_tables(engine) == []
    assert await lock_rows(engine) == [OUTBOX_LOCK]
    await engine.dispose()


def test_statements_for_an_unknown_database_are_refused() -> None:
    with pytest.raises(DatabaseUrlError, match="'oracle' is no database"):
        ddl("oracle")


async def test_missing_tables_name_the_command(database_url: str) -> None:
    engine = open_engine(database_url)
    with pytest.raises(SchemaError, match="evworker_outbox") as refused:
        await check_tables(engine)
    assert "`evworker outbox init`" in str(refused.value)
    await engine.dispose()


async def test_a_table_of_an_older_version_is_refused_with_its_migration(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE evworker_outbox DROP COLUMN failed_since"))
        await connection.execute(text("ALTER TABLE evworker_outbox DROP COLUMN last_error"))
    with pytest.raises(SchemaError, match="older version") as refused:
        await check_tables(engine)
    migration = [line.strip() for line in str(refused.value).splitlines() if "ALTER TABLE" in line]
    assert len(migration) == 2
    async with engine.begin() as connection:
        for statement in migration:
            await connection.execute(text(statement.removesuffix(";")))
    await check_tables(engine)
