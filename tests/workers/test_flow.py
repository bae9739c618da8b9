"""How much is taken at once, from which queues, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from evworker.workers import Context, Plugin, Retry, Worker
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Seen, Stage


class Gate:
    """A handler that waits to be let through, and counts how many wait with it."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self, event: Any, ctx: Context) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.opened.wait()
        self.inside -= 1


@pytest.mark.parametrize(
    ("declared", "told", "expected"), [(3, None, 3), (10, 2, 2), (1, None, 1), (1, 4, 4)]
)
async def test_so_many_handlers_run_at_once_and_no_more(
    stage: Stage, declared: int, told: int | None, expected: int
) -> None:
    gate = Gate()
    plugin = stage.plugin(gate, OrderPlaced, concurrency=declared, prefetch=20)
    async with stage.working(plugin, concurrency=told) as worker:
        for number in range(12):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: gate.inside == expected)

        async def all_taken() -> bool:
            return await stage.waiting_in(stage.queue("charge")) == 0

        await eventually(all_taken, "the rest waits in the worker")
        assert gate.inside == expected
        gate.opened.set()
        await eventually(lambda: worker.counts.handled == 12)
    assert gate.most == expected


@pytest.mark.parametrize(("declared", "told", "expected"), [(4, None, 4), (20, 3, 3)])
async def test_so_many_are_taken_ahead_and_no_more(
    stage: Stage, declared: int, told: int | None, expected: int
) -> None:
    gate = Gate()
    plugin = stage.plugin(gate, OrderPlaced, concurrency=2, prefetch=declared)
    await stage.declare(plugin)
    for number in range(12):
        await stage.publish(OrderPlaced(order_id=str(number)))
    async with stage.working(plugin, prefetch=told) as worker:

        async def taken() -> bool:
            return await stage.waiting_in(stage.queue("charge")) == 12 - expected

        await eventually(taken)
        await eventually(lambda: gate.inside == 2)
        assert await taken()
        gate.opened.set()
        await eventually(lambda: worker.counts.handled == 12)


async def test_a_slow_consumer_does_not_hold_up_another_queue(stage: Stage) -> None:
    gate, seen = Gate(), Seen()
    plugin = Plugin("shop")
    plugin.consumer("orders.*", name="slow", queue=stage.queue("slow"), concurrency=1)(gate)
    plugin.consumer("orders.*", name="fast", queue=stage.queue("fast"))(seen)
    async with stage.working(plugin):
        for number in range(50):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: len(seen) == 50)
        assert gate.inside == 1
        gate.opened.set()


def three_queues(stage: Stage) -> tuple[Plugin, dict[str, Seen]]:
    plugin = Plugin("shop")
    seen = {name: Seen() for name in ("one", "two", "three")}
    for name, handler in seen.items():
        plugin.consumer("#", name=name, queue=stage.queue(name), retry=Retry())(handler)
    return plugin, seen


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"queues": ["one"]}, {"one"}),
        ({"queues": ["one", "two"]}, {"one", "two"}),
        ({"exclude_queues": ["one"]}, {"two", "three"}),
        ({"queues": ["one", "two"], "exclude_queues": ["two"]}, {"one"}),
        ({}, {"one", "two", "three"}),
    ],
)
async def test_only_the_selected_queues_are_consumed(
    stage: Stage, selection: dict[str, list[str]], expected: set[str]
) -> None:
    plugin, seen = three_queues(stage)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    named = {option: [stage.queue(name) for name in names] for option, names in selection.items()}
    worker = await stage.work(plugin, **named)
    assert {name for name, handler in seen.items() if len(handler)} == expected
    assert worker.counts.handled == len(expected)
    left = {name for name in seen if await stage.waiting_in(stage.queue(name))}
    assert left == set(seen) - expected


async def test_a_burst_ends_once_every_queue_and_retry_is_done(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt < 3:
            raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("700ms", "700ms"))
    await stage.declare(plugin)
    for number in range(20):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert worker.counts.handled == 20
    assert len(seen) == 60


async def test_a_burst_waits_for_what_still_runs(stage: Stage) -> None:
    gate = Gate()
    plugin = stage.plugin(gate, OrderPlaced)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    burst = asyncio.create_task(stage.work(plugin))
    await eventually(lambda: gate.inside == 1)

    async def looks_empty() -> bool:
        return await stage.waiting_in(stage.queue("charge")) == 0

    await eventually(looks_empty)
    gate.opened.set()
    assert (await burst).counts.handled == 1


async def test_a_burst_outlives_a_lost_connection(stage: Stage, proxy: Proxy) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1h"))
    queue = stage.queue("charge")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await proxy.open()
    worker = stage.worker(plugin, url=proxy.url, burst=True)
    burst = asyncio.create_task(worker.run())
    await eventually(lambda: worker.counts.retried == 1)
    await heard_by_the_broker(worker)
    connections = proxy.connections
    proxy.freeze()
    await eventually(lambda: proxy.held, "it asks whether the queues are empty")
    proxy.cut()
    proxy.thaw()
    await eventually(lambda: proxy.connections == 2 * connections, "it is back")
    # Its hour is over.
    copy = await stage.raw(f"{queue}.retry.1h")
    await stage.send(copy.body, queue=queue, headers=copy.headers, content_type=copy.content_type)
    await asyncio.wait_for(burst, 30)
    assert (worker.counts.retried, worker.counts.handled) == (1, 1)


async def heard_by_the_broker(worker: Worker) -> None:
    """Wait until the broker has read all acks so far: it answers in order."""
    intake = worker._feeds[0]._intake  # noqa: SLF001 - an ack has no answer of its own
    assert intake is not None
    await intake._channel.basic_qos(prefetch_count=10)  # noqa: SLF001 - as above


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_max_events_is_exact(stage: Stage, concurrency: int) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, OrderPlaced, concurrency=concurrency)
    await stage.declare(plugin)
    for number in range(30):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = stage.worker(plugin, max_events=7)
    await worker.run()
    assert len(seen) == worker.counts.settled == worker.counts.handled == 7

    async def the_rest() -> bool:
        return await stage.waiting_in(stage.queue("charge")) == 23

    await eventually(the_rest)
    again = await stage.work(plugin)
    assert again.counts.handled == 23
    assert {order.order_id for order in seen.events} == {str(number) for number in range(30)}


async def test_max_events_counts_what_failed_and_what_could_not_be_read(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    for _ in range(20):
        await stage.send(b"not json", topic="orders.placed")
    worker = stage.worker(plugin, max_events=5)
    await worker.run()
    assert worker.counts.settled == 5

    async def the_rest() -> int:
        queue = stage.queue("charge")
        letters = len(await stage.letters(queue))
        retried = await stage.waiting_in(f"{queue}.retry.{SOON}")
        return await stage.waiting_in(queue) + letters + retried

    async def nothing_lost() -> bool:
        return await the_rest() == 21

    await eventually(nothing_lost)
    assert sum(worker.counts.dead_lettered.values()) == len(
        await stage.letters(stage.queue("charge"))
    )
