"""Stopping: intake first, then what runs, then everything else; nothing lost, nothing counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from evworker.workers import Context, Retry, Worker
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.stage import (
    SOON,
    STOP_TIMEOUT_S,
    OrderPlaced,
    OutOfLuckError,
    Seen,
    Stage,
    until_ready,
)


class Started:
    """A worker whose handlers wait to be let through, with events in all stages of their way."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.queue = stage.queue("charge")
        self.running: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.may_end = asyncio.Event()
        self.worker: Worker
        self.run: asyncio.Task[None]

    async def handler(self, event: OrderPlaced, ctx: Context) -> None:
        self.running.append(event.order_id)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.append(event.order_id)
            raise
        self.ended.append(event.order_id)

    async def start(self, handler: Any = None, **options: Any) -> None:
        """2 of 10 events run, 4 wait in the worker, 4 in the queue."""
        plugin = self.stage.plugin(
            handler or self.handler, OrderPlaced, concurrency=2, prefetch=6, retry=Retry(SOON)
        )
        await self.stage.declare(plugin)
        for number in range(10):
            await self.stage.publish(OrderPlaced(order_id=str(number)))
        self.worker = self.stage.worker(plugin, **options)
        self.run = asyncio.create_task(self.worker.run())
        await until_ready(self.worker)
        await eventually(lambda: len(self.running) == 2)
        await eventually(self.in_queue(4))

    def in_queue(self, count: int) -> Any:
        async def condition() -> bool:
            return await self.stage.waiting_in(self.queue) == count

        return condition

    async def stopped(self) -> None:
        await asyncio.wait_for(self.run, STOP_TIMEOUT_S)

    async def handle_the_rest(self) -> Seen:
        seen = Seen()
        await self.stage.work(self.stage.plugin(seen, OrderPlaced))
        assert await self.stage.letters(self.queue) == []
        assert set(seen.attempts) <= {1}, "nothing counted as a failure"
        return seen


@pytest.fixture
async def started(stage: Stage) -> AsyncIterator[Started]:
    started = Started(stage)
    yield started
    started.may_end.set()
    started.worker.stop()
    started.worker.stop()
    await asyncio.gather(started.run, return_exceptions=True)


async def test_what_runs_may_end_and_what_waits_is_handed_back(started: Started) -> None:
    await started.start()
    started.worker.stop()
    # Long before the running ones end, others can have what has not started.
    await eventually(started.in_queue(8))
    assert not started.run.done()
    started.may_end.set()
    await started.stopped()
    assert len(started.ended) == started.worker.counts.handled == 2
    assert started.cancelled == []
    assert started.worker.counts.handed_back >= 4
    assert started.worker.counts.settled == 2
    rest = await started.handle_the_rest()
    handled = [event.order_id for event in rest.events] + started.ended
    assert sorted(handled) == [str(number) for number in range(10)]


async def test_after_the_shutdown_timeout_what_runs_is_cancelled_and_handed_back(
    started: Started,
) -> None:
    await started.start(shutdown_timeout_s=0.2)
    started.worker.stop()
    await started.stopped()
    assert sorted(started.cancelled) == sorted(started.running)
    assert started.worker.counts.settled == 0
    await eventually(started.in_queue(10))
    rest = await started.handle_the_rest()
    assert sorted(event.order_id for event in rest.events) == [str(n) for n in range(10)]
    assert not any("evw-attempt" in ctx.headers for ctx in rest.contexts)


async def test_a_second_stop_is_at_once(started: Started) -> None:
    await started.start(shutdown_timeout_s=3_600.0)
    started.worker.stop()
    await eventually(started.in_queue(8))
    assert not started.run.done()
    started.worker.stop()
    await started.stopped()
    assert len(started.cancelled) == 2
    rest = await started.handle_the_rest()
    assert len(rest) == 10


async def test_a_cancelled_run_drains_as_a_stopped_one(started: Started) -> None:
    await started.start()
    started.run.cancel()
    await eventually(started.in_queue(8))
    started.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await started.stopped()
    assert started.worker.counts.handled == len(started.ended) == 2
    assert len(await started.handle_the_rest()) == 8


async def test_a_failure_while_stopping_is_settled_as_a_failure(started: Started) -> None:
    async def fail(event: OrderPlaced, ctx: Context) -> None:
        await started.handler(event, ctx)
        raise OutOfLuckError

    await started.start(fail)
    started.worker.stop()
    await eventually(started.in_queue(8))
    started.may_end.set()
    await started.stopped()
    assert started.worker.counts.retried == started.worker.counts.settled == 2
    await eventually(started.in_queue(10))


async def test_a_handler_that_ends_well_although_cancelled_has_succeeded(
    started: Started,
) -> None:
    async def insist(event: OrderPlaced, ctx: Context) -> None:
        try:
            await started.handler(event, ctx)
        except asyncio.CancelledError:
            started.ended.append(event.order_id)

    await started.start(insist, shutdown_timeout_s=0.2)
    started.worker.stop()
    await started.stopped()
    assert started.worker.counts.handled == len(started.ended) == 2
    assert len(await started.handle_the_rest()) == 8


async def test_stopping_does_not_wait_for_another_attempt(stage: Stage) -> None:
    async def fail(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(fail, OrderPlaced, retry=Retry("1h"))
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.retried == 1)
    assert await stage.waiting_in(f"{stage.queue('charge')}.retry.1h") == 1


async def test_a_thread_that_never_ends_is_abandoned_and_its_event_handed_back(
    stage: Stage,
) -> None:
    never = threading.Event()
    started = threading.Event()

    def charge(event: Any, ctx: Context) -> None:
        started.set()
        never.wait(60)

    worker = stage.worker(stage.plugin(charge, OrderPlaced), shutdown_timeout_s=0.2)
    run = asyncio.create_task(worker.run())
    try:
        await until_ready(worker)
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(started.is_set)
        worker.stop()
        await asyncio.wait_for(run, STOP_TIMEOUT_S)
        assert worker.abandoned == 1
        assert worker.counts.settled == 0

        async def back() -> bool:
            return await stage.waiting_in(stage.queue("charge")) == 1

        await eventually(back)
    finally:
        never.set()


async def test_a_thread_that_ends_in_time_is_waited_for(stage: Stage) -> None:
    may_end = threading.Event()
    started = threading.Event()

    def charge(event: Any, ctx: Context) -> None:
        started.set()
        may_end.wait(60)

    worker = stage.worker(stage.plugin(charge, OrderPlaced))
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    await stage.publish(OrderPlaced(order_id="42"))
    await eventually(started.is_set)
    worker.stop()
    may_end.set()
    await asyncio.wait_for(run, STOP_TIMEOUT_S)
    assert (worker.counts.handled, worker.abandoned) == (1, 0)


async def test_a_worker_that_was_stopped_before_it_ran_does_not_start(stage: Stage) -> None:
    worker = stage.worker(stage.plugin(Seen()))
    worker.stop()
    await asyncio.wait_for(worker.run(), STOP_TIMEOUT_S)
    assert not worker.ready.is_set()


async def test_a_worker_can_be_stopped_while_its_connection_is_lost(
    started: Started, proxy: Proxy
) -> None:
    await proxy.open()
    await started.start(url=proxy.url)
    proxy.refuse()
    proxy.cut()
    await eventually(started.in_queue(10), "the broker has taken everything back")
    started.worker.stop()
    started.may_end.set()
    await started.stopped()
    assert len(started.ended) == 2
    assert len(await started.handle_the_rest()) == 10


async def test_a_worker_can_be_stopped_at_once_although_its_network_is_frozen(
    started: Started, proxy: Proxy
) -> None:
    await proxy.open()
    await started.start(url=proxy.url)
    proxy.freeze()
    started.worker.stop()
    await eventually(lambda: proxy.held, "it asks to get no more")
    started.worker.stop()
    await asyncio.wait_for(started.run, 15)  # half of what Kubernetes gives
    proxy.cut()
    assert len(started.cancelled) == 2
    assert len(await started.handle_the_rest()) == 10
