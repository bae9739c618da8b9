"""Links that end or begin badly: lanes and consumers go on, and nothing piles up."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from pamqp import commands, frame
from structlog.testing import capture_logs

from evworker.broker.intake import Intake
from evworker.workers import Context, Retry, RetryAfter, Worker
from evworker.workers import settlement as settlement_module
from evworker.workers.feed import Feed
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.wire import Wire, channel_of, method_in, unchanged
from tests.workers.stage import OrderPlaced, OutOfLuckError, PaymentProcessed, Seen, Stage

CONSUMING, PUBLISHING = 1, 2

A_BURST = 100
"""Frames at once, more than aiormq works off before it hears of anything else."""


# The end of a connection close behind its last frames


async def test_lanes_go_on_when_their_publishing_connection_ends_behind_a_burst(
    stage: Stage, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    lanes = 3
    copies = 0

    def swallow(connection: int, data: bytes) -> bytes:
        nonlocal copies
        if connection != PUBLISHING:
            return data
        copies += isinstance(method_in(data), commands.Basic.Publish)
        return b""

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "bad":
            raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, concurrency=lanes, retry=Retry("1h"))
    async with stage.working(plugin, url=wire.url) as worker:
        kept = wire.keep(PUBLISHING)
        publisher = worker._publisher  # noqa: SLF001 - what handlers publish with
        unconfirmed = []
        for number in range(A_BURST):
            size = len(kept)
            unconfirmed.append(
                asyncio.create_task(publisher.publish(PaymentProcessed(order_id=str(number))))
            )
            await eventually(partial(is_longer, kept, size), "a confirm of its own for each")
        wire.from_client = swallow
        for _ in range(lanes):
            await stage.publish(OrderPlaced(order_id="bad"))
        await eventually(lambda: copies == lanes, "each lane waits for its copy's confirm")
        wire.from_client = unchanged
        wire.hang_up(PUBLISHING)
        await asyncio.gather(*unconfirmed, return_exceptions=True)
        for _ in range(lanes):
            await stage.publish(OrderPlaced(order_id="good"))
        await eventually(lambda: worker.counts.retried == lanes, timeout_s=30)
        await eventually(lambda: worker.counts.handled == lanes, timeout_s=30)
        await eventually(lambda: tasks_of(worker) == lanes + 1, "the lanes, and the quarantine")
    assert worker.counts.dead_lettered == {}
    assert "please report it" not in capsys.readouterr().out


def is_longer(kept: bytearray, size: int) -> bool:
    return len(kept) > size


def tasks_of(worker: Worker) -> int:
    tasks = worker._feeds[0]._tasks  # noqa: SLF001 - a lane that died leaves no other trace
    return len([task for task in tasks if not task.done()])


async def test_a_worker_comes_back_when_its_consuming_connection_ends_behind_a_burst(
    stage: Stage, wire: Wire
) -> None:
    """Deliveries of one queue are the burst; the other's declaration is under way meanwhile."""
    seen = Seen()
    may_end = asyncio.Event()
    declared: list[str] = []

    def no_answer(connection: int, data: bytes) -> bytes:
        method = method_in(data)
        if connection == CONSUMING and isinstance(method, commands.Exchange.Declare):
            declared.append(method.exchange)
            wire.keep(CONSUMING)
            return b""
        return data

    async def wait(event: Any, ctx: Context) -> None:
        await may_end.wait()

    plugin = stage.plugin(seen, OrderPlaced)
    payments = stage.queue("payments")
    plugin.consumer(PaymentProcessed, name="payments", queue=payments, prefetch=A_BURST)(wait)
    async with stage.working(plugin, url=wire.url) as worker:
        wire.from_client = no_answer
        await stage.delete_queue(stage.queue("charge"))
        await eventually(lambda: declared)
        wire.from_client = unchanged
        await asyncio.gather(
            *(stage.publish(PaymentProcessed(order_id=str(number))) for number in range(A_BURST))
        )

        async def delivered() -> bool:
            return await stage.waiting_in(payments) == 0

        await eventually(delivered)
        wire.hang_up(CONSUMING)
        await eventually(lambda: wire.connections > 2, "it has noticed")
        may_end.set()

        async def handled() -> bool:
            await stage.publish(OrderPlaced(order_id="1"))
            return len(seen) > 0

        await eventually(handled, timeout_s=30)
        await eventually(lambda: worker.counts.handled >= A_BURST + 1, timeout_s=30)


# The broker's cancel


async def test_a_cancel_right_behind_the_begin_is_noticed(stage: Stage, wire: Wire) -> None:
    begun: list[str] = []

    def begin_and_cancel(connection: int, data: bytes) -> bytes:
        method = method_in(data)
        if not isinstance(method, commands.Basic.ConsumeOk):
            return data
        begun.append(str(method.consumer_tag))
        if len(begun) > 1:
            return data
        cancel = commands.Basic.Cancel(consumer_tag=method.consumer_tag, nowait=True)
        return data + frame.marshal(cancel, channel_of(data))

    wire.from_broker = begin_and_cancel
    seen = Seen()
    async with stage.working(stage.plugin(seen, OrderPlaced), url=wire.url):
        # Not before: the broker knows nothing of this cancel, and delivers.
        await eventually(lambda: len(begun) == 2, timeout_s=30)
        await stage.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: len(seen) == 1, timeout_s=30)


# A busy handler


async def test_deliveries_of_dead_channels_do_not_pile_up(stage: Stage, proxy: Proxy) -> None:
    prefetch = 20
    may_end = asyncio.Event()
    handled: set[str] = set()

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        await may_end.wait()
        handled.add(event.order_id)

    await proxy.open()
    plugin = stage.plugin(charge, OrderPlaced, concurrency=1, prefetch=prefetch)
    async with stage.working(plugin, url=proxy.url) as worker:
        await asyncio.gather(
            *(stage.publish(OrderPlaced(order_id=str(number))) for number in range(prefetch))
        )
        await eventually(partial(all_are_with, worker, stage, prefetch))
        feed = worker._feeds[0]  # noqa: SLF001 - from outside nobody sees that it is back
        for _ in range(4):
            before = feed._intake  # noqa: SLF001
            proxy.cut()
            await eventually(partial(has_another_intake, feed, before), timeout_s=30)
            # The one that runs is counted still, beside its second delivery.
            await eventually(lambda: feed.in_process <= prefetch + 2)
        may_end.set()
        await eventually(lambda: len(handled) == prefetch, timeout_s=60)
    assert worker.counts.dead_lettered == {}, "it was the connection that died, and no worker"


async def all_are_with(worker: Worker, stage: Stage, count: int) -> bool:
    # Ready are none while they are with a worker, and all as long as it is away.
    in_process: int = worker._in_process  # noqa: SLF001 - what a pile would be counted in
    assert in_process <= count + 1
    return in_process == count and await stage.waiting_in(stage.queue("charge")) == 0


def has_another_intake(feed: Feed, before: Intake | None) -> bool:
    return feed._intake is not before  # noqa: SLF001 - as above


# Without the right to declare


def forbidden(name: str) -> Any:
    """Have the broker itself refuse the declaration: nobody may declare a name with `amq.`."""

    def change(_connection: int, data: bytes) -> bytes:
        method = method_in(data)
        if isinstance(method, commands.Queue.Declare) and method.queue == name:
            return data.replace(name.encode(), b"amq." + b"x" * (len(name) - 4))
        return data

    return change


async def test_a_wait_that_may_not_be_declared_becomes_the_nearest_that_there_is(
    stage: Stage, wire: Wire
) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        raise RetryAfter("2m")

    queue = stage.queue("charge")
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1s", "1h"))
    async with stage.working(plugin, url=wire.url) as worker:
        wire.from_client = forbidden(f"{queue}.retry.2m")
        await stage.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: worker.counts.retried == 1)
        assert await stage.waiting_in(f"{queue}.retry.1h") == 1
    assert len(seen) == 1


async def test_a_longer_wait_than_any_becomes_the_longest_and_is_told(
    stage: Stage, wire: Wire
) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise RetryAfter("2d")

    queue = stage.queue("charge")
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1m", "1h"))
    with capture_logs() as logs:
        async with stage.working(plugin, url=wire.url) as worker:
            wire.from_client = forbidden(f"{queue}.retry.2d")
            await stage.publish(OrderPlaced(order_id="1"))
            await eventually(lambda: worker.counts.retried == 1)
            assert await stage.waiting_in(f"{queue}.retry.1h") == 1
    (told,) = (line for line in logs if "shortened" in line)
    assert (told["asked"], told["delay"], told["shortened"]) == ("2d", "1h", True)


async def test_a_queue_that_is_gone_and_may_not_be_declared_is_asked_for_ever_more_rarely(
    stage: Stage, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def backed_off(attempt: int) -> float:
        attempts.append(attempt)
        return 0.01

    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    monkeypatch.setattr(settlement_module, "backoff_s", backed_off)
    waiting = f"{stage.queue('charge')}.retry.1h"
    async with stage.working(
        stage.plugin(charge, OrderPlaced, retry=Retry("1h")), url=wire.url
    ) as worker:
        wire.from_client = forbidden(waiting)
        await stage.delete_queue(waiting)
        await stage.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: attempts[:4] == [1, 2, 3, 4])
        wire.from_client = unchanged  # it may again
        await eventually(lambda: worker.counts.retried == 1)
    assert await stage.waiting_in(waiting) == 1
