"""A transaction that is not the one that was begun is never committed, nor half of one kept."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from evworker.broker import TransactionError
from evworker.workers import Context
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.transactions.shop import Shop, charge, effects, unique_effects


async def test_after_a_rollback_the_row_of_a_duplicate_is_not_taken_for_ones_own(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    if shop.is_sqlite:
        return  # its transactions take turns, so that no duplicate comes between
    started: list[str] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        started.append(event.order_id)
        if len(started) > 1:
            await charge(event, ctx)
            return
        await ctx.session.rollback()
        await eventually(shop.effects)
        await ctx.session.execute(insert(effects).values(order_id="applied again"))

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, concurrency=2)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for _ in range(2):
            await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.settled == 2)
    assert worker.counts.handled == 1
    assert await shop.effects() == ["42"]


async def test_after_a_deadlock_that_was_caught_nothing_is_committed(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    if shop.engine.dialect.name != "mysql":
        return  # PostgreSQL gives the whole transaction up, SQLite has no deadlocks
    async with shop.engine.begin() as connection:
        rows = [{"order_id": str(number)} for number in range(100)]
        await connection.execute(insert(unique_effects), rows)
    started: list[str] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        started.append(event.order_id)
        if len(started) > 1:
            await charge(event, ctx)
            return
        mine, others = (
            update(unique_effects)
            .values(order_id=unique_effects.c.order_id + "!")
            .where(
                unique_effects.c.order_id == number if is_mine else unique_effects.c.order_id > "2"
            )
            for number, is_mine in (("1", True), ("", False))
        )
        await ctx.session.execute(mine)
        async with shop.engine.connect() as heavier:
            await heavier.execute(others)
            crossing = asyncio.create_task(heavier.execute(mine))
            with suppress(DBAPIError):
                await ctx.session.execute(others)
            await crossing
            await heavier.rollback()
        await eventually(shop.effects)
        await ctx.session.execute(insert(effects).values(order_id="applied again"))

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, concurrency=2)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for _ in range(2):
            await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.settled == 2)
    assert worker.counts.handled == 1
    assert await shop.effects() == ["42"]


ENDING = ["COMMIT", " commit work", "ROLLBACK", "/* so */ COMMIT", "-- so\nCOMMIT"]
ENDING_ON_MYSQL = [
    "CREATE TABLE another (a INT)",
    "TRUNCATE TABLE unique_effects",
    "BEGIN",
    "SET autocommit = 1",
]


async def test_text_that_would_end_the_transaction_is_refused(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    statements = ENDING + (ENDING_ON_MYSQL if shop.engine.dialect.name == "mysql" else [])

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        await ctx.session.execute(text(event.order_id))
        raise AssertionError

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for statement in statements:
            await stage.publish(OrderPlaced(order_id=statement))
        await eventually(lambda: worker.counts.settled == len(statements))
    assert await shop.effects() == []
    assert await shop.inbox() == []
    letters = await stage.letters(plugin.consumers[0].queue)
    assert {letter.failure.error_type for letter in letters} == {
        "evworker.broker.errors.TransactionError"
    }


async def test_an_engine_that_commits_by_itself_is_refused_at_the_start(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    engine = create_async_engine(shop.engine.url, isolation_level="AUTOCOMMIT")
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    with pytest.raises(TransactionError, match="keeps what is rolled back"):
        await stage.work(plugin, database=engine, relay=False)
    await engine.dispose()
    assert await shop.inbox() == []
