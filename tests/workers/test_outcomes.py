"""What a handler or its policy can decide about a message, and what then becomes of it."""

from __future__ import annotations

import asyncio
import random

from evworker.workers import Context, DeadLetter, Discard, Retry, RetryAfter
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Seen, Stage


class SoldOutError(Exception):
    """Nothing to be done, and nothing to be kept."""


async def test_a_handler_can_make_it_a_dead_letter_and_say_why(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        raise DeadLetter("the customer has left")

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry(SOON, SOON))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="1"))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"given-up": 1}
    letter = await stage.letter(plugin.consumers[0].queue)
    assert letter.failure.error_message == "the customer has left"
    assert letter.failure.attempts == 1


async def test_a_handler_or_its_policy_can_discard(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "1":
            raise Discard("test order")
        raise SoldOutError

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry(SOON, discard_on=SoldOutError))
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    for number in range(3):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert worker.counts.discarded == 3
    assert await stage.letters(queue) == []
    assert await stage.waiting_in(queue) == 0


async def test_a_budget_of_time_ends_the_attempts(stage: Stage) -> None:
    seen = Seen()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        seen.note(event, ctx)
        raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry(*["200ms"] * 50, within="500ms"))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="1"))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 1}
    assert 1 < len(seen) <= 3


async def test_jitter_uses_queues_that_are_there(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry("40ms", jitter=0.5))
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    for delay in ("40ms", "50ms", "60ms"):
        assert await stage.waiting_in(f"{queue}.retry.{delay}") == 0
    for number in range(20):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert (worker.counts.retried, worker.counts.handled) == (20, 20)


async def test_the_higher_priority_is_handled_first_and_retries_keep_theirs(stage: Stage) -> None:
    seen = Seen()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt == 1 and event.order_id == "high 0":
            raise OutOfLuckError

    plugin = stage.plugin(
        handle, OrderPlaced, priorities=5, concurrency=1, prefetch=1, retry=Retry(SOON)
    )
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    for number in range(20):
        await stage.publish(OrderPlaced(order_id=f"low {number}"), priority=1)
        await stage.publish(OrderPlaced(order_id=f"high {number}"), priority=5)
    worker = await stage.work(plugin)
    order = [event.order_id.split()[0] for event in seen.events]
    assert worker.counts.handled == 40
    assert order[:20] == ["high"] * 20
    assert await stage.letters(queue) == []


async def test_published_is_succeeded_and_discarded_and_dead_lettered(stage: Stage) -> None:
    """Random outcomes, drawn anew for each attempt, from a fixed seed."""
    dice = random.Random(20_101_201)
    succeeded = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        match dice.choice(("ok", "ok", "fail", "fail", "later", "dead", "discard", "exit")):
            case "fail":
                raise OutOfLuckError
            case "later":
                raise RetryAfter("10ms")
            case "dead":
                raise DeadLetter("by lot")
            case "discard":
                raise Discard("by lot")
            case "exit":
                raise SystemExit(3)
        succeeded.append(event.order_id)

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry(SOON, SOON))
    await stage.declare(plugin)
    await asyncio.gather(*(stage.publish(OrderPlaced(order_id=str(n))) for n in range(300)))
    counts = (await stage.work(plugin)).counts
    letters = await stage.letters(plugin.consumers[0].queue)
    assert counts.handled == len(succeeded) == len(set(succeeded))
    assert sum(counts.dead_lettered.values()) == len(letters)
    assert counts.handled + counts.discarded + len(letters) == 300
