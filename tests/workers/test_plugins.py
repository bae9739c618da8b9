"""Plugins at work: lifespans and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from evworker.workers import Context, Next, Plugin, PluginStartError, Retry
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Seen, Stage


async def test_what_a_lifespan_yields_reaches_its_own_handlers(stage: Stage) -> None:
    story: list[str] = []
    plugins = []
    for name in ("one", "two"):

        @asynccontextmanager
        async def lifespan(name: str = name) -> AsyncIterator[str]:
            story.append(f"enter {name}")
            yield f"state of {name}"
            story.append(f"leave {name}")

        async def handler(event: Any, ctx: Context) -> None:
            story.append(f"{ctx.consumer}: {ctx.state}")

        plugin = Plugin(name, lifespan=lifespan)
        plugin.consumer(OrderPlaced, name=name, queue=stage.queue(name))(handler)
        plugins.append(plugin)
    async with stage.working(*plugins) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 2)
    assert story[:2] == ["enter one", "enter two"]
    assert sorted(story[2:4]) == ["one: state of one", "two: state of two"]
    assert story[4:] == ["leave two", "leave one"]


async def test_a_lifespan_is_left_after_the_last_handler(stage: Stage) -> None:
    story: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        story.append("left")

    async def handler(event: Any, ctx: Context) -> None:
        story.append("started")
        worker.stop()
        await eventually(worker_is_draining)
        story.append("ended")

    def worker_is_draining() -> bool:
        return worker._stop_asked.is_set()  # noqa: SLF001 - the moment has no name of its own

    plugin = Plugin("billing", lifespan=lifespan)
    plugin.consumer(OrderPlaced, name="charge", queue=stage.queue("charge"))(handler)
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: "left" in story)
    assert story == ["started", "ended", "left"]


def check_pool() -> None:
    raise OutOfLuckError("the pool is empty")


async def test_a_lifespan_that_raises_stops_the_worker_before_the_first_event(
    stage: Stage,
) -> None:
    story: list[str] = []

    @asynccontextmanager
    async def good() -> AsyncIterator[None]:
        story.append("enter good")
        try:
            yield
        finally:
            story.append("leave good")

    @asynccontextmanager
    async def bad() -> AsyncIterator[None]:
        check_pool()
        yield

    seen = Seen()
    first, second = Plugin("first", lifespan=good), Plugin("second", lifespan=bad)
    for plugin in (first, second):
        queue = stage.queue(plugin.name)
        plugin.consumer("#", name=plugin.name, queue=queue, retry=Retry())(seen)
    worker = stage.worker(first, second)
    told = "plugin 'second' could not start: OutOfLuckError: the pool is empty"
    with pytest.raises(PluginStartError, match=told) as raised:
        await worker.run()
    assert isinstance(raised.value.__cause__, OutOfLuckError)
    assert story == ["enter good", "leave good"]
    await stage.publish(OrderPlaced(order_id="42"))

    async def kept() -> bool:
        return await stage.waiting_in(stage.queue("first")) == 1

    await eventually(kept, "the event waits in its queue")
    assert len(seen) == 0


def told(story: list[str], name: str) -> Any:
    async def middleware(event: Any, ctx: Context, call_next: Next) -> None:
        story.append(f"{name} before")
        await call_next(event, ctx)
        story.append(f"{name} after")

    return middleware


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_middleware_wraps_the_handler_the_plugins_first(stage: Stage, kind: str) -> None:
    story: list[str] = []

    async def in_loop(event: Any, ctx: Context) -> None:
        story.append("handler")

    def in_thread(event: Any, ctx: Context) -> None:
        story.append("handler")

    plugin = Plugin("billing", middleware=[told(story, "one"), told(story, "two")])
    plugin.consumer(
        OrderPlaced,
        name="charge",
        queue=stage.queue("charge"),
        middleware=[told(story, "three")],
    )(in_loop if kind == "async" else in_thread)
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    before, after = story[: story.index("handler")], story[story.index("handler") + 1 :]
    assert before == ["one before", "two before", "three before"]
    assert after == ["three after", "two after", "one after"]


async def test_middleware_may_answer_for_the_handler(stage: Stage) -> None:
    seen = Seen()

    async def skip(event: OrderPlaced, ctx: Context, call_next: Next) -> None:
        if event.order_id != "test order":
            await call_next(event, ctx)

    plugin = stage.plugin(seen, OrderPlaced, middleware=[skip])
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="test order"))
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 2)
    assert seen.events == [OrderPlaced(order_id="42")]


async def test_middleware_may_hand_on_another_event(stage: Stage) -> None:
    seen = Seen()

    async def change(event: Any, ctx: Context, call_next: Next) -> None:
        await call_next(OrderPlaced(order_id="changed"), ctx)

    async with stage.working(stage.plugin(seen, OrderPlaced, middleware=[change])):
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: seen.events == [OrderPlaced(order_id="changed")])


async def test_what_middleware_raises_is_a_failed_attempt(stage: Stage) -> None:
    seen = Seen()

    async def refuse(event: Any, ctx: Context, call_next: Next) -> None:
        if ctx.attempt == 1:
            raise OutOfLuckError
        await call_next(event, ctx)

    plugin = stage.plugin(seen, OrderPlaced, middleware=[refuse], retry=Retry(SOON))
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    assert seen.attempts == [2]


async def test_middleware_may_swallow_a_failure(stage: Stage) -> None:
    async def forgive(event: Any, ctx: Context, call_next: Next) -> None:
        with suppress(OutOfLuckError):
            await call_next(event, ctx)

    def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, middleware=[forgive])
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    assert worker.counts.dead_lettered == {}
