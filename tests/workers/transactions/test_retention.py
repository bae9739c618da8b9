"""What the inbox keeps, and for how long; and that a worker keeps nothing at all for each event."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from evworker.broker import DurationError
from evworker.broker.database.tables import inbox, utc_now
from evworker.workers import Context, Plugin, Worker
from evworker.workers.inbox import Inbox
from evworker.workers.transaction import Transaction
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.transactions.shop import Shop, charge

HOUR_S = 3_600.0
EVENTS = 300
LIMIT_S = 5.0
"""Far below the 50 s for which MariaDB waits for a lock."""


async def remember(shop: Shop, *ages_s: float) -> None:
    now = datetime.now(UTC)
    async with shop.engine.begin() as connection:
        await connection.execute(
            insert(inbox),
            [
                {
                    "consumer": "charge",
                    "event_id": f"e-{number}",
                    "handled_at": now - timedelta(seconds=age_s),
                }
                for number, age_s in enumerate(ages_s)
            ],
        )


async def test_what_is_older_than_the_window_is_forgotten(shop: Shop) -> None:
    await remember(shop, 2 * HOUR_S, 1.1 * HOUR_S, 0.9 * HOUR_S, 0.0)
    assert await Inbox(shop.engine, window_s=HOUR_S).prune() == 2
    assert await shop.inbox() == [("charge", "e-2"), ("charge", "e-3")]
    assert await Inbox(shop.engine, window_s=HOUR_S).prune() == 0


async def test_it_is_forgotten_in_batches(shop: Shop) -> None:
    # Some of one moment, which a batch may not divide for ever.
    await remember(shop, *(2 * HOUR_S + number // 700 for number in range(2_500)), 0.0)
    assert await Inbox(shop.engine, window_s=HOUR_S).prune() == 2_500
    assert await shop.inbox() == [("charge", "e-2500")]


@pytest.mark.parametrize("kept", [0, 3, 1_500])
@pytest.mark.parametrize("old", [0, 1, 3, 1_500])
async def test_a_handler_that_takes_its_time_holds_up_no_pruning(
    shop: Shop, old: int, kept: int
) -> None:
    if shop.is_sqlite:  # which has one writer at a time, who is waited for
        return
    ages_s = [2 * HOUR_S + number for number in range(old)] + [0.0] * kept
    if ages_s:
        await remember(shop, *ages_s)
    async with shop.engine.connect() as handler:
        row = {"consumer": "charge", "event_id": "e-0 at work", "handled_at": utc_now()}
        await handler.execute(insert(inbox).values(row))
        async with asyncio.timeout(LIMIT_S):
            assert await Inbox(shop.engine, window_s=HOUR_S).prune() == old
        await handler.commit()
    assert await shop.count(inbox) == kept + 1


async def test_a_worker_prunes_by_itself(stage: Stage, shop: Shop, database_url: str) -> None:
    await remember(shop, 2 * HOUR_S, 0.0)
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False, inbox_window="1h"):

        async def is_pruned() -> bool:
            return await shop.inbox() == [("charge", "e-1")]

        await eventually(is_pruned)


def test_a_window_that_can_not_be_read_is_refused() -> None:
    plugin = Plugin("billing")
    plugin.consumer(OrderPlaced, transactional=True)(charge)
    with pytest.raises(DurationError):
        Worker([plugin], "amqp://localhost/", database="sqlite:///x.db", inbox_window="a week")


async def test_nothing_is_kept_for_an_event_that_is_done(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if int(event.order_id) % 10 == 0:
            raise ValueError(event.order_id)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for number in range(EVENTS):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: worker.counts.settled == EVENTS, timeout_s=30)
        gc.collect()
        left = [one for one in gc.get_objects() if isinstance(one, (Transaction, Context))]
        # asyncio keeps the last hundred timers that were cancelled, with what they were made in.
        assert len(left) < EVENTS
