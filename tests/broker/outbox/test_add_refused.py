"""What can't be added is refused at once, and says what to write instead."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from evworker.broker import (
    ConfigurationError,
    DatabaseUnreachableError,
    DurationError,
    Event,
    HeadersError,
    InvalidEventError,
    Outbox,
    SchemaError,
    TransactionError,
)
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from tests.broker.events import OrderPlaced
from tests.broker.outbox.sessions import (
    ASYNC_OF_POSTGRESQL,
    SYNC_OF_POSTGRESQL,
    InTransaction,
    in_async_session,
    opened_sync,
    rows_in,
)
from tests.waiting import eventually

outbox = Outbox(source="shop")
ORDER = OrderPlaced(order_id="42")


class Measured(Event, topic="measured"):
    by: object


class Nameless(Event):
    order_id: str


async def test_without_tables_the_command_is_named(database_url: str) -> None:
    with pytest.raises(SchemaError, match="`evworker outbox init`"):
        async with in_async_session(database_url) as session:
            await outbox.add(session, ORDER)
    with pytest.raises(SchemaError, match="`evworker outbox init`"):
        async with in_async_session(database_url) as session:
            await outbox.add_many(session, [ORDER, ORDER])


@pytest.mark.parametrize("in_transaction", ASYNC_OF_POSTGRESQL + SYNC_OF_POSTGRESQL)
async def test_without_tables_drivers_name_the_command_too(
    postgres_url: str, in_transaction: InTransaction
) -> None:
    with pytest.raises(SchemaError, match="`evworker outbox init`"):
        async with in_transaction(postgres_url) as session:
            await outbox.add(session, ORDER)


async def test_a_table_of_an_older_version_refuses_an_event(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE evworker_outbox DROP COLUMN priority"))
    async with AsyncSession(engine) as session:
        with pytest.raises(SchemaError, match="priority"):
            await outbox.add(session, ORDER)


async def test_a_session_that_commits_by_itself_is_refused(engine: AsyncEngine) -> None:
    committing = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with AsyncSession(committing) as session:
        with pytest.raises(TransactionError, match="AUTOCOMMIT"):
            await outbox.add(session, ORDER)
    async with committing.connect() as connection:
        with pytest.raises(TransactionError, match="AUTOCOMMIT"):
            await outbox.add_many(connection, [ORDER])
    assert await rows_in(engine) == []


async def test_an_engine_made_for_autocommit_is_refused(
    engine: AsyncEngine, database_url: str
) -> None:
    with opened_sync(database_url, isolation_level="AUTOCOMMIT") as committing:
        with committing.connect() as connection, pytest.raises(TransactionError, match="AUTOCOMM"):
            outbox.add_sync(connection, ORDER)
        # A connection that asks for a transaction all the same has one.
        level = "SERIALIZABLE"
        with committing.connect().execution_options(isolation_level=level) as connection:
            outbox.add_sync(connection, ORDER)
            connection.rollback()
    assert await rows_in(engine) == []


async def test_an_engine_is_no_transaction(engine: AsyncEngine) -> None:
    with pytest.raises(TransactionError, match=r"engine\.begin\(\)"):
        await outbox.add(engine, ORDER)  # type: ignore[arg-type]
    with pytest.raises(TransactionError, match=r"engine\.begin\(\)"):
        outbox.add_sync(engine.sync_engine, ORDER)  # type: ignore[arg-type]


async def test_a_drivers_connection_without_a_transaction_is_refused(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    with pytest.raises(TransactionError, match=r"connection\.transaction\(\)"):
        await outbox.add(connection, ORDER)
    await connection.close()
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=1) as pool:
        with pytest.raises(TransactionError, match="Pool has no transaction"):
            await outbox.add(pool, ORDER)
        async with pool.acquire() as pooled:
            with pytest.raises(TransactionError, match=r"connection\.transaction\(\)"):
                await outbox.add(pooled, ORDER)
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as other:
        with pytest.raises(TransactionError, match=r"connection\.transaction\(\)"):
            await outbox.add(other, ORDER)
    with (
        psycopg.connect(postgres_url, autocommit=True) as plain,
        pytest.raises(TransactionError, match=r"connection\.transaction\(\)"),
    ):
        outbox.add_sync(plain, ORDER)


async def test_what_has_to_be_awaited_is_not_taken_without(
    engine: AsyncEngine, postgres_url: str
) -> None:
    connection: Any
    async with AsyncSession(engine) as session, engine.connect() as connection:
        for awaited in (session, connection):
            with pytest.raises(TypeError, match=r"has to be awaited: `await outbox\.add"):
                outbox.add_sync(awaited, ORDER)  # type: ignore[arg-type]
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        with pytest.raises(TypeError, match="AsyncConnection has to be awaited"):
            outbox.add_many_sync(connection, [ORDER])


async def test_what_is_no_session_is_told_what_is() -> None:
    with pytest.raises(TypeError, match="a dict is no session that the outbox knows"):
        await outbox.add({}, ORDER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "arguments", "error", "says"),
    [
        (Measured(by=object()), {}, InvalidEventError, "Measured can't be written as JSON"),
        (Nameless(order_id="1"), {}, InvalidEventError, "Nameless has no topic"),
        (ORDER, {"priority": 256}, HeadersError, "priority 256 is not between 0 and 255"),
        (ORDER, {"priority": -1}, HeadersError, "priority -1"),
        (ORDER, {"headers": {"x-death": "1"}}, HeadersError, "'x-death' can't be set"),
        (ORDER, {"headers": {"n": "y" * 70_000}}, HeadersError, "at most 65,536"),
        (ORDER, {"id": "i" * 256}, HeadersError, "the id 'iii.* is longer than 255 bytes"),
        (ORDER, {"id": "i\0"}, HeadersError, "the id .* holds a zero character"),
        (ORDER, {"key": "k" * 256}, HeadersError, "the key 'kkk.* is longer than 255 characters"),
        (ORDER, {"key": "k\0"}, HeadersError, "the key .* holds a zero character"),
        (ORDER, {"key": "\ud800"}, HeadersError, "its id or key is not valid Unicode"),
        (ORDER, {"delay": "soon"}, DurationError, "can't read the duration 'soon'"),
        (ORDER, {"delay": "1s", "at": datetime.now(UTC)}, ConfigurationError, "exclude each other"),
        (ORDER, {"at": datetime(2031, 1, 1)}, ConfigurationError, "has no time zone"),  # noqa: DTZ001
    ],
)
async def test_what_could_never_be_published_leaves_the_transaction_as_it_was(
    engine: AsyncEngine,
    event: Event,
    arguments: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        kept = await outbox.add(session, ORDER)
        with pytest.raises(error, match=says):
            await outbox.add(session, event, **arguments)
    assert [row["event_id"] for row in await rows_in(engine)] == [kept.id]


async def test_one_bad_event_keeps_all_of_them_out(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        with pytest.raises(InvalidEventError, match="Measured"):
            await outbox.add_many(session, [ORDER, Measured(by=object()), ORDER])
    assert await rows_in(engine) == []


async def end_sessions(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.mark.parametrize(
    "in_transaction", [in_async_session, *ASYNC_OF_POSTGRESQL, *SYNC_OF_POSTGRESQL]
)
async def test_a_connection_that_is_lost_is_told_as_such(
    postgres_url: str, in_transaction: InTransaction
) -> None:
    engine = open_engine(postgres_url)
    await make_tables(engine)
    await engine.dispose()
    told: Exception | None = None
    with suppress(Exception):  # the transaction can't be ended any more, says each in its own way
        async with in_transaction(postgres_url) as session:
            await outbox.add(session, ORDER)
            await end_sessions(postgres_url)
            try:
                await outbox.add(session, ORDER)
            except Exception as error:
                told = error
                raise
    assert isinstance(told, DatabaseUnreachableError)
    assert await rows_in(engine) == []
    await engine.dispose()


async def test_a_connection_that_is_known_to_be_lost_is_told_as_such(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.transaction().start()
    await end_sessions(postgres_url)
    await eventually(connection.is_closed)
    with pytest.raises(DatabaseUnreachableError, match="the asyncpg connection is closed"):
        await outbox.add(connection, ORDER)
