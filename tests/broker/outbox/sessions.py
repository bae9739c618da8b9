"""Every kind of session that the outbox takes, each in a transaction of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import Engine, RowMapping, create_engine, make_url, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from evworker.broker.database.engine import open_engine
from evworker.broker.database.tables import outbox

InTransaction = Callable[[str], AbstractAsyncContextManager[Any]]
"""Takes the database's URL; commits at the end, and rolls back if the body raises."""


async def rows_in(engine: AsyncEngine) -> list[RowMapping]:
    async with engine.connect() as connection:
        found = await connection.execute(select(outbox).order_by(outbox.c.seq))
        return list(found.mappings())


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def opened_sync(url: str, **options: Any) -> Iterator[Engine]:
    address = make_url(url)
    scheme = address.drivername
    driver = {"postgresql": "psycopg", "mysql": "pymysql", "sqlite": "pysqlite"}[scheme]
    engine = create_engine(address.set(drivername=f"{scheme}+{driver}"), **options)
    try:
        yield engine
    finally:
        engine.dispose()


@asynccontextmanager
async def in_async_session(url: str) -> AsyncIterator[AsyncSession]:
    async with opened(url) as engine, AsyncSession(engine) as session, session.begin():
        yield session


@asynccontextmanager
async def in_async_scoped_session(url: str) -> AsyncIterator[Any]:
    async with opened(url) as engine:
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: None)
        async with session.begin():
            yield session


@asynccontextmanager
async def in_session_of_several_databases(url: str) -> AsyncIterator[AsyncSession]:
    async with (
        opened(url) as engine,
        AsyncSession(binds={outbox: engine}) as session,
        session.begin(),
    ):
        yield session


@asynccontextmanager
async def in_async_connection(url: str) -> AsyncIterator[Any]:
    async with opened(url) as engine, engine.begin() as connection:
        yield connection


@asynccontextmanager
async def in_session(url: str) -> AsyncIterator[Session]:
    with opened_sync(url) as engine, Session(engine) as session, session.begin():
        yield session


@asynccontextmanager
async def in_scoped_session(url: str) -> AsyncIterator[Any]:
    with opened_sync(url) as engine:
        session = scoped_session(sessionmaker(engine))
        with session.begin():
            yield session


@asynccontextmanager
async def in_connection(url: str) -> AsyncIterator[Any]:
    with opened_sync(url) as engine, engine.begin() as connection:
        yield connection


@asynccontextmanager
async def in_asyncpg_connection(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def in_asyncpg_pool(url: str) -> AsyncIterator[Any]:
    async with (
        asyncpg.create_pool(url, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection


@asynccontextmanager
async def in_async_psycopg(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection


@asynccontextmanager
async def in_autocommitting_async_psycopg(url: str) -> AsyncIterator[Any]:
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
        connection.transaction(),
    ):
        yield connection


@asynccontextmanager
async def in_psycopg(url: str) -> AsyncIterator[Any]:
    with psycopg.connect(url) as connection:
        yield connection


ASYNC_OF_SQLALCHEMY: list[InTransaction] = [
    in_async_session,
    in_async_scoped_session,
    in_session_of_several_databases,
    in_async_connection,
]
SYNC_OF_SQLALCHEMY: list[InTransaction] = [in_session, in_scoped_session, in_connection]
ASYNC_OF_POSTGRESQL: list[InTransaction] = [
    in_asyncpg_connection,
    in_asyncpg_pool,
    in_async_psycopg,
    in_autocommitting_async_psycopg,
]
SYNC_OF_POSTGRESQL: list[InTransaction] = [in_psycopg]
