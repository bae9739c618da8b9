"""Transactional consumers on each broker, with PostgreSQL: what a broker delivers again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from evworker.broker import replay_dead_letters
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.workers import Context
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, OutOfLuckError, PaymentProcessed, Seen, Stage
from tests.workers.transactions.shop import Shop, charge


@pytest.fixture
async def shop(postgres_url: str) -> AsyncIterator[Shop]:
    engine = open_engine(postgres_url)
    await make_tables(engine)
    shop = Shop(engine)
    await shop.make()
    yield shop
    await engine.dispose()


async def test_what_is_committed_and_not_acked_comes_again_and_is_acked(
    stage: Stage, shop: Shop, postgres_url: str, proxy: Proxy
) -> None:
    """The connection to the broker is lost while the handler runs: it commits all the same."""
    started, may_end = asyncio.Event(), asyncio.Event()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        started.set()
        await may_end.wait()

    await proxy.open()
    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    queue = plugin.consumers[0].queue
    async with stage.working(plugin, url=proxy.url, database=postgres_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await asyncio.wait_for(started.wait(), 10)
        proxy.cut()
        may_end.set()
        await eventually(lambda: worker.counts.duplicates == 1, timeout_s=30)
    assert await shop.effects() == ["42"]
    assert await stage.waiting_in(queue) == 0


async def test_a_delivery_that_comes_again_while_the_first_is_at_work_waits_for_it(
    stage: Stage, shop: Shop, postgres_url: str, proxy: Proxy
) -> None:
    started, may_end = asyncio.Event(), asyncio.Event()
    runs = 0

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        nonlocal runs
        runs += 1
        await charge(event, ctx)
        started.set()
        await may_end.wait()

    async def second_waits() -> bool:
        async with shop.engine.connect() as connection:
            waiting = await connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND wait_event_type = 'Lock'"
                )
            )
        return bool(waiting == 1)

    await proxy.open()
    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, url=proxy.url, database=postgres_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await asyncio.wait_for(started.wait(), 10)
        proxy.cut()
        await eventually(second_waits, timeout_s=30)
        may_end.set()
        await eventually(lambda: worker.counts.duplicates == 1, timeout_s=30)
    assert runs == 1
    assert await shop.effects() == ["42"]


async def test_a_replay_is_applied_once_and_keeps_its_idempotency_key(
    stage: Stage, shop: Shop, postgres_url: str
) -> None:
    keys: list[str] = []
    works = False

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        keys.append(ctx.idempotency_key)
        await charge(event, ctx)
        if not works:
            raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    queue = plugin.consumers[0].queue
    async with stage.working(plugin, database=postgres_url, relay=False) as worker:
        await stage.send(
            json.dumps({"order_id": "42"}).encode(), topic="orders.placed", message_id="m-1"
        )
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 1})
        works = True
        await replay_dead_letters(stage.connection, f"{queue}.dlq")
        await eventually(lambda: worker.counts.handled == 1)
    assert keys == ["charge:m-1"] * 2
    assert await shop.effects() == ["42"]
    assert await shop.inbox() == [("charge", "m-1")]


@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "priorities"])
async def test_a_cascade_through_the_outbox_takes_effect_once(
    stage: Stage, shop: Shop, postgres_url: str, priorities: int | None
) -> None:
    seen = Seen()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        await ctx.publish(PaymentProcessed(order_id=event.order_id), priority=priorities)

    async def look(event: PaymentProcessed, ctx: Context) -> None:
        seen.note(event, ctx)
        await charge(OrderPlaced(order_id=f"paid {event.order_id}"), ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, priorities=priorities)
    plugin.consumer(
        PaymentProcessed,
        queue=stage.queue("look"),
        transactional=True,
        priorities=priorities,
    )(look)
    async with stage.working(plugin, database=postgres_url) as worker:
        for _ in range(2):
            await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.settled == 3, timeout_s=30)
    assert (worker.counts.handled, worker.counts.duplicates) == (2, 1)
    assert await shop.effects() == ["42", "paid 42"]
    assert (seen.contexts[0].envelope.causation_id, seen.contexts[0].envelope.correlation_id) == (
        "e-1",
        "e-1",
    )
    assert await shop.outbox() == []
