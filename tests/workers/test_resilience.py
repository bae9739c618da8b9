"""Channels, queues and connections die; handlers don't, and consumers come back."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import pytest

from evworker.workers import Context, Plugin, Retry, Worker
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.stage import (
    SOON,
    OrderPlaced,
    OutOfLuckError,
    PaymentProcessed,
    Seen,
    Stage,
)


class Patient:
    """A handler that waits until it is told to end, and notes if it was cancelled instead."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.may_end = asyncio.Event()

    async def __call__(self, event: Any, ctx: Context) -> None:
        self.started.append(ctx.envelope.id)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.append(ctx.envelope.id)
            raise
        self.ended.append(ctx.envelope.id)


async def break_channel(worker: Worker) -> None:
    """Have the broker close the channel that is consumed from, as it does for a mistake on it."""
    intake = worker._feeds[0]._intake  # noqa: SLF001 - from outside nobody can make this mistake
    assert intake is not None
    channel = intake._channel  # noqa: SLF001 - as above
    await channel.basic_ack(999_999)  # an unknown delivery: 406
    await eventually(lambda: channel.is_closed)


async def test_a_handler_outlives_its_queue_and_the_consumer_comes_back(stage: Stage) -> None:
    handler = Patient()
    async with stage.working(stage.plugin(handler, OrderPlaced)) as worker:
        await stage.publish(OrderPlaced(order_id="1"), id="e-1")
        await eventually(lambda: handler.started == ["e-1"])
        await stage.delete_queue(stage.queue("charge"))

        async def declared_and_bound_again() -> bool:
            await stage.publish(OrderPlaced(order_id="2"))
            return len(handler.started) > 1

        await eventually(declared_and_bound_again)
        handler.may_end.set()
        await eventually(lambda: "e-1" in handler.ended)
        await eventually(lambda: worker.counts.handled >= 1)
    assert handler.cancelled == []
    assert worker.counts.dead_lettered == {}


async def test_a_handler_outlives_its_channel_and_the_event_comes_again(stage: Stage) -> None:
    handler = Patient()
    async with stage.working(stage.plugin(handler, OrderPlaced, concurrency=2)) as worker:
        await stage.publish(OrderPlaced(order_id="1"), id="e-1")
        await eventually(lambda: handler.started == ["e-1"])
        await break_channel(worker)
        # Its ack is void now, so the broker hands it out again, beside the first that still runs.
        await eventually(lambda: handler.started == ["e-1", "e-1"])
        handler.may_end.set()
        await eventually(lambda: handler.ended == ["e-1", "e-1"])
        # The stale ack did no harm to the new channel.
        await stage.publish(OrderPlaced(order_id="2"), id="e-2")
        await eventually(lambda: "e-2" in handler.ended)
        await eventually(lambda: worker.counts.handled == 2)
    assert handler.cancelled == []
    assert await stage.waiting_in(stage.queue("charge")) == 0


async def test_what_waited_for_a_handler_when_the_channel_died_runs_once(stage: Stage) -> None:
    handler = Patient()
    plugin = stage.plugin(handler, OrderPlaced, concurrency=1, prefetch=10)
    async with stage.working(plugin) as worker:
        for number in range(5):
            await stage.publish(OrderPlaced(order_id=str(number)), id=f"e-{number}")
        await eventually(lambda: len(handler.started) == 1)

        async def all_taken() -> bool:
            return await stage.waiting_in(stage.queue("charge")) == 0

        await eventually(all_taken)
        await break_channel(worker)
        handler.may_end.set()
        await eventually(lambda: worker.counts.handled == 5)
    # Only the one that ran was run again; what waited has come back once.
    assert Counter(handler.ended) == Counter(
        [*(f"e-{number}" for number in range(5)), handler.started[0]]
    )


async def test_a_handler_outlives_its_connection(stage: Stage, proxy: Proxy) -> None:
    handler = Patient()
    await proxy.open()
    plugin = stage.plugin(handler, OrderPlaced, concurrency=2)
    async with stage.working(plugin, url=proxy.url) as worker:
        await stage.publish(OrderPlaced(order_id="1"), id="e-1")
        await eventually(lambda: handler.started == ["e-1"])
        proxy.cut()
        await eventually(lambda: handler.started == ["e-1", "e-1"], timeout_s=30)
        handler.may_end.set()
        await eventually(lambda: handler.ended == ["e-1", "e-1"])
        await eventually(lambda: worker.counts.handled == 1)
    assert handler.cancelled == []
    assert await stage.waiting_in(stage.queue("charge")) == 0


async def test_what_is_to_be_retried_is_not_lost_with_the_connection(
    stage: Stage, proxy: Proxy
) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        if ctx.attempt == 1:
            if proxy.connections == connections:
                proxy.refuse()
                proxy.cut()
            raise OutOfLuckError

    await proxy.open()
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON))
    async with stage.working(plugin, url=proxy.url) as worker:
        connections = proxy.connections
        await stage.publish(OrderPlaced(order_id="42"))

        async def back_in_its_queue() -> bool:
            return await stage.waiting_in(stage.queue("charge")) == 1

        await eventually(back_in_its_queue)
        assert await stage.waiting_in(f"{stage.queue('charge')}.retry.{SOON}") == 0
        await proxy.open()
        await eventually(lambda: worker.counts.handled == 1, timeout_s=30)
    assert worker.counts.retried == 1
    assert await stage.letters(stage.queue("charge")) == []


async def test_what_failed_is_acked_only_after_its_copy_is_confirmed(
    stage: Stage, proxy: Proxy, quick_to_close: None
) -> None:
    publishing = 2

    async def charge(event: Any, ctx: Context) -> None:
        proxy.freeze(publishing)
        raise OutOfLuckError

    await proxy.open()
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1h"))
    async with stage.working(plugin, url=proxy.url) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: proxy.held, "the copy is on its way, and stays there")
        worker.stop()
        worker.stop()
    assert worker.counts.settled == 0
    assert await stage.waiting_in(f"{stage.queue('charge')}.retry.1h") == 0
    assert await stage.waiting_in(stage.queue("charge")) == 1


async def test_nothing_is_lost_on_a_network_that_fails_all_the_time(
    stage: Stage, proxy: Proxy
) -> None:
    handled: list[str] = []

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if int(event.order_id) % 10 == 0:
            raise OutOfLuckError
        if int(event.order_id) % 3 == 0 and ctx.attempt == 1:
            raise OutOfLuckError
        handled.append(event.order_id)

    def reached(so_many: int) -> bool:
        return len(set(handled)) >= so_many

    await proxy.open()
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON, SOON), concurrency=5)
    await stage.declare(plugin)
    numbers = {str(number) for number in range(400)}
    hopeless = {number for number in numbers if int(number) % 10 == 0}
    await asyncio.gather(*(stage.publish(OrderPlaced(order_id=n), id=n) for n in numbers))
    async with stage.working(plugin, url=proxy.url):
        for cuts in range(1, 6):
            so_many = 60 * cuts
            await eventually(partial(reached, so_many), timeout_s=60)
            proxy.cut()

        async def all_of_them() -> bool:
            letters = {letter.id for letter in await stage.letters(stage.queue("charge"))}
            return set(handled) == numbers - hopeless and letters == hopeless

        await eventually(all_of_them, timeout_s=60)
    assert await stage.waiting_in(stage.queue("charge")) == 0


async def test_a_handlers_publish_waits_for_the_connection_to_come_back(
    stage: Stage, proxy: Proxy
) -> None:
    payments = Seen()
    cuts: list[int] = []

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        cuts.append(1)
        if len(cuts) == 1:
            proxy.cut()
        await ctx.publish(PaymentProcessed(order_id=event.order_id), id="payment-1")

    plugin = Plugin("shop")
    for name, handler in (("charge", charge), ("payments", payments)):
        event_type = OrderPlaced if name == "charge" else PaymentProcessed
        plugin.consumer(event_type, name=name, queue=stage.queue(name), retry=Retry(SOON))(handler)
    await proxy.open()
    async with stage.working(plugin, url=proxy.url):
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: len(payments) >= 1, timeout_s=30)
    assert set(payments.ids) == {"payment-1"}
    assert await stage.letters(stage.queue("charge")) == []


@pytest.mark.parametrize("kind", ["thread"])
async def test_a_thread_outlives_its_channel(stage: Stage, kind: str) -> None:
    loop = asyncio.get_running_loop()
    started: list[bool] = []
    may_end = asyncio.Event()

    def charge(event: Any, ctx: Context) -> None:
        started.append(ctx.redelivered)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(30)

    async with stage.working(stage.plugin(charge, OrderPlaced, concurrency=2)) as worker:
        await stage.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: started == [False])
        await break_channel(worker)
        await eventually(lambda: started == [False, True])
        may_end.set()
        await eventually(lambda: worker.counts.handled == 1)
    assert worker.abandoned == 0
    assert await stage.waiting_in(stage.queue("charge")) == 0
