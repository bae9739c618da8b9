"""Transactions that stay open hold nobody up but themselves."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import Outbox, discard_dead, retry_dead
from evworker.broker.database.tables import outbox
from evworker.broker.outbox.store import OutboxStore, Refusal
from tests.broker.events import OrderPlaced
from tests.broker.outbox.written import states

LIMIT_S = 5.0
"""Far below the 50 s for which MariaDB waits for a lock."""


async def add(engine: AsyncEngine, rows: int) -> None:
    async with engine.begin() as connection:
        await Outbox().add_many(
            connection, [OrderPlaced(order_id=str(number)) for number in range(rows)]
        )


@pytest.mark.parametrize("rows", [3, 300, 3_000])
async def test_a_writer_that_takes_its_time_holds_up_no_relay(
    server: AsyncEngine, rows: int
) -> None:
    store = OutboxStore(server, name="one")
    keeping = OutboxStore(server, name="two", keep_s=0.001)
    async with server.connect() as writer:
        await Outbox().add(writer, OrderPlaced(order_id="not committed yet"))
        async with asyncio.timeout(LIMIT_S):
            await add(server, rows)
            claim = await store.claim(10_000)
            assert claim is not None
            assert len(await store.read(claim)) == rows
            first, second, third = claim.seqs[:3]
            refusal = Refusal(first, 1, "no", 0.001)
            await store.back_off(claim.token, [refusal], dead_after_attempts=9, dead_after_s=9)
            assert await store.postpone(claim.token, [second], delay_s=0.001, error="no") == 1
            assert await store.release(claim.token, [third]) == 1
            assert await store.settle(claim.token, claim.seqs) == rows - 3
            left: set[int] = set()
            while left != {first, second, third}:
                if (again := await keeping.claim(10_000)) is not None:
                    assert await keeping.settle(again.token, again.seqs) == len(again.seqs)
                    left |= set(again.seqs)
            while await keeping.prune() or await _rows(server):
                pass
        await writer.commit()
    assert await _rows(server) == 1


@pytest.mark.parametrize("named", [True, False], ids=["named", "all"])
@pytest.mark.parametrize("dead", [1, 3, 300, 3_000])
async def test_a_writer_that_takes_its_time_holds_up_no_operator(
    server: AsyncEngine, dead: int, named: bool
) -> None:
    await add(server, dead)
    retried = await _bury_all(server)
    async with server.connect() as writer:
        await Outbox().add(writer, OrderPlaced(order_id="not committed yet"))
        uncommitted = max(retried) + 1
        await add(server, dead)
        discarded = (await _bury_all(server))[dead:]
        await add(server, dead)
        async with asyncio.timeout(LIMIT_S):
            assert await discard_dead(server, [*discarded, uncommitted]) == dead
            assert await retry_dead(server, [*retried, uncommitted] if named else None) == dead
        await writer.commit()
    assert await _rows(server) == 2 * dead + 1


async def _bury_all(engine: AsyncEngine) -> list[int]:
    """Have all that is committed dead; returns the rows in order."""
    seqs = sorted(await states(engine))
    async with engine.begin() as connection:
        # One by one: else this would wait for the writer itself.
        await connection.execute(
            update(outbox).where(outbox.c.seq == bindparam("row")).values(state="dead"),
            [{"row": seq} for seq in seqs],
        )
    return seqs


async def _rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(select(func.count()).select_from(outbox)) or 0)
