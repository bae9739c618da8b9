"""One event that is delivered more than once is applied once, also when both come at once."""

from __future__ import annotations

import asyncio

import pytest

from evworker.workers import Context, Retry
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Stage
from tests.workers.transactions.shop import Shop, charge


async def test_an_event_that_is_published_twice_is_applied_once(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True, concurrency=5)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for _ in range(3):
            await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await stage.publish(OrderPlaced(order_id="43"), id="E-1")  # another one
        await eventually(lambda: worker.counts.settled == 4)
    assert (worker.counts.handled, worker.counts.duplicates) == (2, 2)
    assert await shop.effects() == ["42", "43"]
    assert await stage.waiting_in(plugin.consumers[0].queue) == 0


async def test_each_consumer_applies_it(stage: Stage, shop: Shop, database_url: str) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    plugin.consumer(
        OrderPlaced, name="other", queue=stage.queue("other"), transactional=True, retry=Retry()
    )(charge)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.handled == 2)
    assert await shop.inbox() == [("charge", "e-1"), ("other", "e-1")]
    assert await shop.effects() == ["42", "42"]


@pytest.mark.parametrize("first_fails", [False, True], ids=["commits", "rolls back"])
async def test_two_workers_with_one_event_at_once_apply_it_once(
    stage: Stage, shop: Shop, database_url: str, *, first_fails: bool
) -> None:
    """The second waits for the first; if that rolls back, it goes on."""
    started: list[str] = []
    may_end = asyncio.Event()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        started.append(event.order_id)
        await charge(event, ctx)
        await may_end.wait()
        if first_fails and len(started) == 1:
            raise OutOfLuckError

    plugin = stage.plugin(
        handle, OrderPlaced, transactional=True, retry=Retry("1h"), concurrency=1, prefetch=1
    )
    queue = plugin.consumers[0].queue
    options = {"database": database_url, "relay": False}
    async with stage.working(plugin, **options) as one, stage.working(plugin, **options) as other:
        for _ in range(2):
            await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: started)

        async def both_are_taken() -> bool:
            return await stage.waiting_in(queue) == 0

        await eventually(both_are_taken)
        assert len(started) == 1
        may_end.set()
        await eventually(lambda: one.counts.settled + other.counts.settled == 2)
    assert one.counts.handled + other.counts.handled == 1
    assert one.counts.duplicates + other.counts.duplicates == (not first_fails)
    assert one.counts.retried + other.counts.retried == first_fails
    assert await shop.effects() == ["42"]
    assert await shop.inbox() == [("charge", "e-1")]


async def test_a_pile_of_duplicates_at_once_costs_nobody_an_attempt(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    """Half of the firsts fail, so that those who wait for them race to be the next."""
    failed: set[str] = set()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if event.order_id not in failed:
            failed.add(event.order_id)
            raise OutOfLuckError

    plugin = stage.plugin(
        handle, OrderPlaced, transactional=True, retry=Retry(SOON), concurrency=12
    )
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for number in range(48):
            await stage.publish(OrderPlaced(order_id=str(number % 6)), id=f"e-{number % 6}")
        await eventually(
            lambda: worker.counts.handled + worker.counts.duplicates == 48, timeout_s=30
        )
    assert worker.counts.handled == 6
    assert worker.counts.dead_lettered == {}
    assert await shop.effects() == [str(number) for number in range(6)]


async def test_what_can_not_be_told_from_others_is_a_dead_letter(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    queue = plugin.consumers[0].queue
    body = b'{"order_id": "42"}'
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.send(body)
        await eventually(lambda: worker.counts.dead_lettered == {"invalid": 1})
        for id in ("\0", "e ", "é" * 128):
            document = (
                b'{"specversion":"1.0","source":"x","type":"orders.placed","id":%s,"data":%s}'
            )
            quoted = b'"\\u0000"' if id == "\0" else f'"{id * (1 if len(id) < 3 else 2)}"'.encode()
            await stage.send(document % (quoted, body), content_type="application/cloudevents+json")
        await eventually(lambda: worker.counts.dead_lettered == {"invalid": 4})
    letters = await stage.letters(queue)
    assert "message_id" in (letters[0].failure.error_message or "")
    assert await shop.effects() == []
    # The copy in the dead-letter queue has an id, so that its replay is applied, and once.
    raw = await stage.raw(f"{queue}.dlq")
    again = stage.plugin(charge, OrderPlaced, transactional=True)
    async with stage.working(again, database=database_url, relay=False) as worker:
        for _ in range(2):
            await stage.send(raw.body, message_id=raw.message_id)
        await eventually(lambda: worker.counts.settled == 2)
    assert await shop.effects() == ["42"]
