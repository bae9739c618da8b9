"""What can't be added is refused at once, and says what to write instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import Connection, make_url, select, text
from sqlalchemy import event as database_event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

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


DRIVERS_AUTOCOMMIT: dict[str, dict[str, Any]] = {
    "postgresql": {"autocommit": True},
    "mysql": {"autocommit": True},
    "sqlite": {"isolation_level": None},
}
FOR_ASYNC = {"postgresql": "psycopg", "mysql": "aiomysql", "sqlite": "aiosqlite"}
BEGIN = {"postgresql": "BEGIN", "mysql": "START TRANSACTION", "sqlite": "BEGIN"}


@asynccontextmanager
async def with_drivers_autocommit(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine whose driver commits each statement, which SQLAlchemy does not know."""
    kind = make_url(url).drivername
    address = make_url(url).set(drivername=f"{kind}+{FOR_ASYNC[kind]}")
    committing = create_async_engine(address, connect_args=DRIVERS_AUTOCOMMIT[kind])
    yield committing
    await committing.dispose()


async def test_a_driver_that_commits_by_itself_is_refused(
    engine: AsyncEngine, database_url: str
) -> None:
    kind = make_url(database_url).drivername
    async with with_drivers_autocommit(database_url) as committing:
        async with AsyncSession(committing) as session:
            with pytest.raises(TransactionError, match="driver is in autocommit"):
                await outbox.add(session, ORDER)
        async with committing.connect() as connection:
            with pytest.raises(TransactionError, match="driver is in autocommit"):
                await outbox.add_many(connection, [ORDER])
            async with connection.begin():  # as it was before
                with pytest.raises(TransactionError, match="driver is in autocommit"):
                    await outbox.add(connection, ORDER)
    with (
        opened_sync(database_url, connect_args=DRIVERS_AUTOCOMMIT[kind]) as committing_sync,
        Session(committing_sync) as sync_session,
        pytest.raises(TransactionError, match="driver is in autocommit"),
    ):
        outbox.add_sync(sync_session, ORDER)
    assert await rows_in(engine) == []


async def test_a_url_of_mysql_that_asks_for_autocommit_is_refused(database_url: str) -> None:
    address = make_url(database_url)
    if address.drivername != "mysql":  # of the others a URL can't ask for it
        return
    committing = open_engine(f"{database_url}?autocommit=true")
    async with AsyncSession(committing) as session:
        with pytest.raises(TransactionError, match=r"autocommit .* out of the URL"):
            await outbox.add(session, ORDER)
    await committing.dispose()


async def test_a_driver_that_commits_by_itself_is_taken_in_a_transaction_begun_by_hand(
    engine: AsyncEngine, database_url: str
) -> None:
    """As SQLAlchemy advises for SQLite."""

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(BEGIN[connection.dialect.name])

    async with with_drivers_autocommit(database_url) as committing:
        database_event.listen(committing.sync_engine, "begin", begin)
        for end in ("rollback", "commit"):
            async with committing.connect() as connection:
                await outbox.add(connection, ORDER)
                await connection.exec_driver_sql(end)
            async with committing.connect() as connection:
                await connection.execute(select(1))
                await outbox.add(connection, ORDER)
                await connection.rollback()
    assert len(await rows_in(engine)) == 1


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
