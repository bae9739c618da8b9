"""What an event costs the transaction it is added to, beside a bare INSERT of the same row.

    python -m benchmarks.outbox_add [--rounds 30] [--adds 200]

On PostgreSQL, through the same session in the same transaction, which is rolled back: rounds of
either take turns, and the medians are compared. The bare INSERT has its row ready and wakes nobody.
The bar is 1.3 for a SQLAlchemy session. A bare driver has less to hide an event's encoding behind:
that takes some ten microseconds on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from evworker.broker import Envelope, Event, Outbox
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.database.tables import outbox as table
from tests.databases import own_database

outbox = Outbox(source="benchmark")

Once = Callable[[Any], Awaitable[object]]
"""Writes one row through a session."""


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str
    customer_id: str
    note: str


EVENT = OrderPlaced(order_id="4711", customer_id="customer-7", note="n" * 40)


def row() -> dict[str, Any]:
    envelope = Envelope.wrap(EVENT, source="benchmark", key="customer-7")
    return {
        "event_id": envelope.id,
        "topic": envelope.topic,
        "key": envelope.key,
        "body": envelope.encode(),
        "created_at": datetime.now(UTC),
        "state": "ready",
        "attempts": 0,
    }


ROW = row()
BARE = (
    f"INSERT INTO {table.name} ({', '.join(ROW)}) "
    "VALUES ($1, $2, $3, $4, $5::timestamptz, $6, $7::integer)"
)
BARE_PSYCOPG = f"INSERT INTO {table.name} ({', '.join(ROW)}) VALUES ({', '.join(['%s'] * 7)})"


async def add(session: Any) -> None:
    await outbox.add(session, EVENT, key="customer-7")


async def per_call(once: Once, session: Any, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        await once(session)
    return (time.perf_counter() - started) / calls


async def compare(name: str, session: Any, bare: Once, rounds: int, adds: int) -> None:
    times: dict[Once, list[float]] = {bare: [], add: []}
    for number in range(rounds + 3):
        for once in (bare, add) if number % 2 else (add, bare):
            seconds = await per_call(once, session, adds)
            if number >= 3:
                times[once].append(seconds)
    inserted, added = (1e6 * statistics.median(times[once]) for once in (bare, add))
    print(f"{name:<24}{inserted:>8.0f} µs bare{added:>8.0f} µs added{added / inserted:>8.2f}")


async def measure(url: str, rounds: int, adds: int) -> None:
    engine = open_engine(url)
    await make_tables(engine)

    async def by_sqlalchemy(session: Any) -> None:
        await session.execute(insert(table), ROW)

    async def by_asyncpg(connection: Any) -> None:
        await connection.execute(BARE, *ROW.values())

    async def by_psycopg(connection: Any) -> None:
        await connection.execute(BARE_PSYCOPG, tuple(ROW.values()))

    async with AsyncSession(engine) as session:
        await compare("AsyncSession", session, by_sqlalchemy, rounds, adds)
        await session.rollback()
    async with engine.connect() as connection:
        await compare("AsyncConnection", connection, by_sqlalchemy, rounds, adds)
        await connection.rollback()
    plain = await asyncpg.connect(url)
    transaction = plain.transaction()
    await transaction.start()
    await compare("asyncpg.Connection", plain, by_asyncpg, rounds, adds)
    await transaction.rollback()
    await plain.close()
    async with await psycopg.AsyncConnection.connect(url) as other:
        await compare("psycopg.AsyncConnection", other, by_psycopg, rounds, adds)
        await other.rollback()
    await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of Outbox.add")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--adds", type=int, default=200)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        own_database("postgresql", Path(folder), "bench") as url,
    ):
        asyncio.run(measure(url, arguments.rounds, arguments.adds))


if __name__ == "__main__":
    main()
