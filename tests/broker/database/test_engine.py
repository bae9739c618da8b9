"""A database's URL, and its troubles: away, unwilling, or without our tables."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from evworker.broker import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    DatabaseUrlError,
    SchemaError,
)
from evworker.broker.database.engine import address_of, database_errors, open_engine
from evworker.broker.database.tables import inbox, locks
from tests.databases import own_database
from tests.waiting import eventually

SERVERS = ("postgresql", "mysql", "mariadb")


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        yield placeholder.getsockname()[1]


async def ask(engine: AsyncEngine, statement: str = "SELECT 1") -> None:
    try:
        with database_errors(engine, "look at the outbox"):
            async with engine.connect() as connection:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


def on_server(url: str, **changes: Any) -> AsyncEngine:
    return open_engine(make_url(url).set(**changes).render_as_string(hide_password=False))


@pytest.mark.parametrize("scheme", SERVERS)
async def test_a_server_that_is_not_there_is_unreachable(scheme: str, free_port: int) -> None:
    engine = open_engine(f"{scheme}://shop:secret@127.0.0.1:{free_port}/shop")
    with pytest.raises(DatabaseUnreachableError, match="can't look at the outbox in") as told:
        await ask(engine)
    assert isinstance(told.value, ConnectionError)
    assert f"127.0.0.1:{free_port}/shop" in str(told.value)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("scheme", SERVERS)
async def test_a_host_that_is_not_known_is_unreachable(scheme: str) -> None:
    with pytest.raises(DatabaseUnreachableError):
        await ask(open_engine(f"{scheme}://shop@nowhere.invalid/shop"))


@pytest.mark.parametrize("scheme", SERVERS)
async def test_a_server_that_hangs_up_is_unreachable(scheme: str) -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DatabaseUnreachableError):
            await ask(open_engine(f"{scheme}://shop@127.0.0.1:{port}/shop"))


@pytest.mark.parametrize("scheme", SERVERS)
async def test_a_server_that_says_nothing_is_unreachable(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evworker.broker.database.engine.CONNECT_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(DatabaseUnreachableError):
            await ask(open_engine(f"{scheme}://shop@127.0.0.1:{port}/shop"))


async def test_a_file_in_no_folder_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachableError, match="unable to open"):
        await ask(open_engine(f"sqlite:///{tmp_path}/nowhere/outbox.db"))
    # aiosqlite's thread for it ends after the answer, and must not outlive the loop.
    await eventually(lambda: not [t for t in threading.enumerate() if "_connection_w" in t.name])


@pytest.fixture(params=["postgresql", "mariadb"])
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with own_database(request.param, tmp_path) as url:
        yield url


@pytest.mark.database
async def test_a_database_that_is_not_there_is_a_refusal(server_url: str) -> None:
    with pytest.raises(DatabaseRefusedError, match="t_nowhere"):
        await ask(on_server(server_url, database="t_nowhere"))


@pytest.mark.database
async def test_a_user_that_is_not_let_in_is_a_refusal(server_url: str) -> None:
    with pytest.raises(DatabaseRefusedError) as told:
        await ask(on_server(server_url, username="t_nobody", password="secret"))
    assert "secret" not in str(told.value)


async def test_a_table_that_is_not_there_names_the_command(database_url: str) -> None:
    with pytest.raises(SchemaError, match="evworker outbox init"):
        await ask(open_engine(database_url), "SELECT seq FROM evworker_outbox")


async def test_a_column_that_is_not_there_names_the_command(engine: AsyncEngine) -> None:
    with pytest.raises(SchemaError, match="evworker outbox init"):
        await ask(engine, "SELECT colour FROM evworker_outbox")


async def test_what_hurts_a_constraint_is_told_as_it_is(engine: AsyncEngine) -> None:
    with pytest.raises(IntegrityError), database_errors(engine, "lock"):
        async with engine.begin() as connection:
            await connection.execute(insert(locks).values(name="outbox"))


async def test_a_statement_that_is_wrong_is_told_as_it_is(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError, match=r"(?i)syntax"):
        await ask(engine, "SELEKT 1")


async def test_a_session_that_the_server_ends_is_unreachable_and_the_next_is_not(
    postgres_url: str,
) -> None:
    engine = open_engine(postgres_url)
    with pytest.raises(DatabaseUnreachableError), database_errors(engine, "look"):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    await ask(engine)


@pytest.mark.database
async def test_a_session_that_mariadb_ends_is_unreachable_and_the_next_is_not(
    tmp_path: Path,
) -> None:
    with own_database("mariadb", tmp_path) as url:
        engine = open_engine(url)
        other = open_engine(url)
        async with engine.connect() as connection, other.connect() as ending:
            number = (await connection.execute(text("SELECT CONNECTION_ID()"))).scalar()
            await ending.execute(text(f"KILL {number}"))
            with pytest.raises(DatabaseUnreachableError), database_errors(engine, "look"):
                await connection.execute(text("SELECT 1"))
        await other.dispose()
        await ask(engine)


async def test_a_locked_file_is_unreachable(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/outbox.db"
    first, second = (create_async_engine(url, connect_args={"timeout": 0.05}) for _ in range(2))
    async with first.connect() as holding:
        await holding.execute(text("BEGIN IMMEDIATE"))
        with pytest.raises(DatabaseUnreachableError, match="locked"):
            await ask(second, "BEGIN IMMEDIATE")
        await holding.rollback()
    await first.dispose()


async def test_two_statements_at_once_on_a_connection_are_a_programmers_mistake(
    postgres_url: str,
) -> None:
    engine = create_async_engine(
        make_url(postgres_url).set(drivername="postgresql+asyncpg"), poolclass=NullPool
    )
    async with engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        sleeping = asyncio.create_task(raw.execute("SELECT pg_sleep(0.5)"))
        await asyncio.sleep(0)
        with pytest.raises(DBAPIError, match="another operation"), database_errors(engine, "look"):
            await connection.execute(select(inbox))
        await sleeping
    await engine.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("shop", "can't be read"),
        ("postgresql://shop@host:port/shop", "can't be read"),
        ("oracle://shop@host/shop", "'oracle' is no database that evworker knows"),
        ("postgresql+pg8000://shop:secret@host/shop", "'pg8000' for postgresql is not installed"),
    ],
)
def test_a_url_that_can_not_be_used_is_refused(url: str, says: str) -> None:
    with pytest.raises(DatabaseUrlError, match=says) as told:
        open_engine(url)
    assert "secret" not in str(told.value)


def test_a_driver_that_is_missing_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(DatabaseUrlError, match=r"pip install 'evworker\[mysql\]'"):
        open_engine("mariadb://shop@host/shop")


def test_an_address_tells_no_password() -> None:
    for scheme in (*SERVERS, "postgres"):
        engine = open_engine(f"{scheme}://shop:secret@host/shop")
        assert "host/shop" in address_of(engine)
        assert "secret" not in address_of(engine)


def test_errors_of_ours_go_through_as_they_are() -> None:
    engine = open_engine("sqlite:///:memory:")
    error = DatabaseError("ours")
    with pytest.raises(DatabaseError) as told, database_errors(engine, "look"):
        raise error
    assert told.value is error
