"""Rows of the outbox as tests write them, and what has become of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import RowMapping, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from evworker.broker import Envelope
from evworker.broker.database.tables import outbox, seconds_from_now, utc_now
from tests.broker.events import OrderPlaced


async def write(engine: AsyncEngine, *keys: str | None, **columns: Any) -> list[int]:
    """Commit a row for each key; returns their sequence numbers."""
    async with engine.begin() as connection:
        return [await write_one(connection, key, **columns) for key in keys]


async def write_one(connection: AsyncConnection, key: str | None = None, **columns: Any) -> int:
    """A row in the connection's transaction."""
    order_id = columns.pop("order_id", "42")
    envelope = Envelope.wrap(OrderPlaced(order_id=order_id), source="tests", key=key)
    row: dict[str, Any] = {
        "event_id": envelope.id,
        "topic": envelope.topic,
        "key": key,
        "body": envelope.encode(),
        "state": "ready",
        "attempts": 0,
    }
    if "due_in_s" in columns:
        row |= {"state": "waiting", "due_at": seconds_from_now(columns.pop("due_in_s"))}
    result = await connection.execute(
        insert(outbox).values(row | {"created_at": utc_now()} | columns)
    )
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


async def states(engine: AsyncEngine) -> dict[int, str]:
    """The state of each row that is there."""
    async with engine.connect() as connection:
        rows = await connection.execute(select(outbox.c.seq, outbox.c.state))
        return {found.seq: found.state for found in rows}


async def row(engine: AsyncEngine, seq: int) -> RowMapping:
    async with engine.connect() as connection:
        found = await connection.execute(select(outbox).where(outbox.c.seq == seq))
        return found.mappings().one()


async def let_time_pass(engine: AsyncEngine, *seqs: int) -> None:
    """Make all waits and leases of these rows, or of all, end now."""
    over = update(outbox).where(outbox.c.due_at.is_not(None))
    if seqs:
        over = over.where(outbox.c.seq.in_(seqs))
    async with engine.begin() as connection:
        await connection.execute(over.values(due_at=seconds_from_now(-1.0)))


async def is_empty(engine: AsyncEngine) -> bool:
    return await states(engine) == {}


async def is_in(engine: AsyncEngine, seq: int, state: str) -> bool:
    return (await states(engine)).get(seq) == state
