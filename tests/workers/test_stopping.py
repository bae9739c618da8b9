"""Stopping whatever does not want to stop: a start, a link, a lifespan, a handler."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from evworker.workers import Context, Plugin, Retry, Worker
from evworker.workers import feed as feed_module
from evworker.workers import worker as worker_module
from evworker.workers.feed import Feed
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.wire import Wire, unchanged
from tests.workers.stage import STOP_TIMEOUT_S, OrderPlaced, Seen, Stage, running, until_ready

A_SHORT_PATIENCE_S = 0.2


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_CANCEL_PATIENCE_S", A_SHORT_PATIENCE_S)
    monkeypatch.setattr(worker_module, "_LIFESPAN_PATIENCE_S", A_SHORT_PATIENCE_S)


# At any moment of a start, and of a reconnect


@pytest.mark.parametrize("seed", range(3))
async def test_a_stop_ends_a_worker_at_whichever_moment(
    stage: Stage, wire: Wire, seed: int
) -> None:
    """Moments are counted in frames that the broker has said, so that they come again."""
    moments = random.Random(seed)
    plugin = Plugin("billing")
    for name in ("one", "two", "three"):
        plugin.consumer(f"{name}.#", name=name, queue=stage.queue(name), retry=Retry())(Seen())
    worker: Worker
    frames_left: int

    def stop_in_time(_connection: int, data: bytes) -> bytes:
        nonlocal frames_left
        frames_left -= 1
        if frames_left == 0:
            worker.stop()
        return data

    for _ in range(15):
        wire.from_broker = unchanged
        worker = stage.worker(plugin, url=wire.url, shutdown_timeout_s=2.0)
        run = asyncio.create_task(worker.run())
        if moments.random() < 0.5:
            frames_left = moments.randint(1, 60)
            wire.from_broker = stop_in_time
        else:
            await until_ready(worker)
            frames_left = moments.randint(1, 40)
            wire.from_broker = stop_in_time
            wire.cut()
        # One whose moment does not come is stopped once nothing happens any more.
        hurried = asyncio.get_running_loop().call_later(3.0, worker.stop)
        await asyncio.wait_for(run, 20)
        hurried.cancel()


async def test_a_stop_that_was_swallowed_while_subscribing_is_not_forgotten(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python 3.11's wait_for swallows a cancellation that meets the broker's answer."""
    subscribed = asyncio.Event()
    subscribe = Feed._subscribe  # noqa: SLF001 - a race that no test could win often enough

    async def swallow(feed: Feed, *, again: bool) -> Any:
        intake = await subscribe(feed, again=again)
        subscribed.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return intake

    monkeypatch.setattr(Feed, "_subscribe", swallow)
    worker = stage.worker(stage.plugin(Seen()))
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(subscribed.wait(), 10)
    worker.stop()
    await asyncio.wait_for(run, 20)


async def test_a_connection_that_breaks_while_the_worker_declares_only_delays_it(
    stage: Stage, wire: Wire
) -> None:
    cuts: list[int] = []

    def cut_at_the_first(_connection: int, data: bytes) -> bytes:
        if not cuts and b"charge" in data:
            cuts.append(1)
            wire.cut()
        return data

    wire.from_client = cut_at_the_first
    seen = Seen()
    async with stage.working(stage.plugin(seen, OrderPlaced), url=wire.url):
        await stage.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: len(seen) == 1)
    assert cuts == [1]


async def test_a_graceful_stop_ends_although_the_network_is_frozen(
    stage: Stage, proxy: Proxy, quick_to_close: None
) -> None:
    await proxy.open()
    worker = stage.worker(stage.plugin(Seen()), url=proxy.url, shutdown_timeout_s=0.2)
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    proxy.freeze()
    worker.stop()
    await asyncio.wait_for(run, 15)
    proxy.cut()


# Handlers


class Deaf:
    """A handler that does not hear its cancellation until the test is over."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.started = asyncio.Event()
        self.enough = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, event: Any, ctx: Context) -> None:
        self.started.set()
        while not self.enough.is_set():
            try:
                await self.enough.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.ended.set()


async def test_a_handler_that_swallows_its_cancellation_is_left_behind(
    stage: Stage, impatient: None
) -> None:
    deaf = Deaf()
    worker = stage.worker(stage.plugin(deaf, OrderPlaced), shutdown_timeout_s=3_600.0)
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    await stage.publish(OrderPlaced(order_id="1"))
    await asyncio.wait_for(deaf.started.wait(), 10)
    worker.stop()
    worker.stop()
    try:
        await asyncio.wait_for(asyncio.shield(run), 20)
    finally:
        deaf.enough.set()
        await asyncio.wait_for(deaf.ended.wait(), 10)
    assert deaf.cancelled > 0
    assert worker.counts.settled == 0
    await stage.work(stage.plugin(seen := Seen(), OrderPlaced))
    assert seen.attempts == [1]


@pytest.mark.parametrize("error", [RuntimeError("the driver was cancelled"), TimeoutError()])
async def test_an_error_made_of_a_stops_cancellation_is_no_failure(
    stage: Stage, error: Exception
) -> None:
    started = asyncio.Event()

    async def charge(event: Any, ctx: Context) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise error from None

    worker = stage.worker(stage.plugin(charge, OrderPlaced, retry=Retry()), shutdown_timeout_s=0.1)
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    await stage.publish(OrderPlaced(order_id="1"))
    await asyncio.wait_for(started.wait(), 10)
    worker.stop()
    await asyncio.wait_for(run, STOP_TIMEOUT_S)
    assert worker.counts.settled == 0
    assert worker.counts.handed_back == 1
    assert await stage.letters(stage.queue("charge")) == []
    await stage.work(stage.plugin(seen := Seen(), OrderPlaced))
    assert seen.attempts == [1]
    assert "evw-attempt" not in seen.contexts[0].headers


class Patient:
    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.may_end = asyncio.Event()

    async def __call__(self, event: OrderPlaced, ctx: Context) -> None:
        self.started.append(event.order_id)
        await self.may_end.wait()
        self.ended.append(event.order_id)


async def test_no_handler_starts_after_a_stop(
    stage: Stage, proxy: Proxy, quick_to_close: None
) -> None:
    """Not even while the broker takes its time to answer that it has heard."""
    patient = Patient()
    await proxy.open()
    plugin = stage.plugin(patient, OrderPlaced, concurrency=1, prefetch=10)
    await stage.declare(plugin)
    for number in range(10):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = stage.worker(plugin, url=proxy.url, shutdown_timeout_s=1.0)
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    await eventually(lambda: worker._in_process == 10)  # noqa: SLF001 - they wait inside
    proxy.freeze()
    worker.stop()
    await eventually(lambda: proxy.held)
    patient.may_end.set()
    await asyncio.wait_for(run, STOP_TIMEOUT_S)
    assert len(patient.started) == 1
    assert patient.ended == patient.started
    proxy.cut()


async def test_after_the_last_event_one_stop_is_still_graceful(stage: Stage) -> None:
    patient = Patient()
    worker = stage.worker(stage.plugin(patient, OrderPlaced), max_events=1)
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    await stage.publish(OrderPlaced(order_id="1"))
    await eventually(lambda: patient.started == ["1"])
    worker.stop()
    # Whoever cancels it does so within this round trip and more.
    await stage.publish(OrderPlaced(order_id="2"))
    await eventually(lambda: stage.waiting_in(stage.queue("charge")))
    assert not run.done()
    patient.may_end.set()
    await asyncio.wait_for(run, STOP_TIMEOUT_S)
    assert patient.ended == ["1"]
    assert worker.counts.handled == 1


# Lifespans


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_lifespan_that_never_starts_ends_with_the_stop(stage: Stage) -> None:
    entering = asyncio.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        entering.set()
        await forever()
        yield

    plugin = Plugin("billing", lifespan=lifespan)
    plugin.consumer("#", name="charge", queue=stage.queue("charge"))(Seen())
    worker = stage.worker(plugin)
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(entering.wait(), 10)
    worker.stop()
    await asyncio.wait_for(run, 10)
    assert not worker.ready.is_set()


async def test_a_lifespan_that_never_ends_is_left_behind_by_the_second_stop(
    stage: Stage, impatient: None
) -> None:
    leaving = asyncio.Event()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        leaving.set()
        await forever()

    plugin = Plugin("billing", lifespan=lifespan)
    plugin.consumer("#", name="charge", queue=stage.queue("charge"))(Seen())
    worker = stage.worker(plugin)
    run = asyncio.create_task(worker.run())
    await until_ready(worker)
    worker.stop()
    await asyncio.wait_for(leaving.wait(), 10)
    assert not run.done()
    worker.stop()
    await asyncio.wait_for(run, 10)


async def test_a_lifespan_that_swallows_its_cancellation_is_left_behind(
    stage: Stage, impatient: None
) -> None:
    deaf = Deaf()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        await deaf(None, None)  # type: ignore[arg-type]  # it looks at neither

    plugin = Plugin("billing", lifespan=lifespan)
    plugin.consumer("#", name="charge", queue=stage.queue("charge"))(Seen())
    worker = stage.worker(plugin)
    try:
        async with running(worker):
            await until_ready(worker)
            worker.stop()
            await asyncio.wait_for(deaf.started.wait(), 10)
    finally:
        deaf.enough.set()
        await asyncio.wait_for(deaf.ended.wait(), 10)
    assert deaf.cancelled > 0
