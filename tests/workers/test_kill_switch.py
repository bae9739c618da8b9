"""A dependency that is down: the queue pauses, and no message pays for it."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from evworker.broker import Event
from evworker.workers import Context, Discard, KillSwitch, Plugin, Retry, fixed
from evworker.workers.killswitch import DEFAULT_KILL_SWITCH
from evworker.workers.retry import DEFAULT_RETRY
from tests.waiting import eventually
from tests.wire import Wire
from tests.workers.stage import OrderPlaced, OutOfLuckError, Stage

EVENTS = 500
QUICK = KillSwitch(ConnectionError, failures=5, pause="50ms")

# An outage of half a second, with policies to match; `make test-long` sets ten, and keeps defaults.
OUTAGE_S = float(os.environ.get("EVWORKER_TEST_OUTAGE_S", "0.5"))
POLICIES: dict[str, Any] = (
    {"retry": Retry(*fixed("50ms", len(DEFAULT_RETRY.delays_s))), "kill_switch": QUICK}
    if DEFAULT_KILL_SWITCH.pause_s > OUTAGE_S
    else {"retry": DEFAULT_RETRY}
)
OPENED = DEFAULT_KILL_SWITCH.failures
"""After so many attempts since its start a worker's switch has opened."""


class Refund(Event, topic="payments.refunded"):
    number: int


@dataclass
class Database:
    """What the handler depends on."""

    up: bool = False
    tried: int = 0
    stored: list[str] = field(default_factory=list)

    async def store(self, event: OrderPlaced, ctx: Context) -> None:
        self.tried += 1
        if not self.up:
            raise ConnectionRefusedError("the database is down")
        self.stored.append(event.order_id)


@pytest.mark.parametrize("restarts", [0, 1], ids=["one worker", "restarted meanwhile"])
async def test_a_dependency_that_is_down_costs_no_message(stage: Stage, restarts: int) -> None:
    database = Database()
    plugin = stage.plugin(database.store, OrderPlaced, concurrency=10, **POLICIES)
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    await asyncio.gather(
        *(stage.publish(OrderPlaced(order_id=str(number))) for number in range(EVENTS))
    )
    for _ in range(restarts):
        tried = database.tried
        async with stage.working(plugin) as worker:
            await outage(database, since=tried)
        assert worker.counts.settled == worker.counts.retried
    tried = database.tried
    async with stage.working(plugin) as worker:
        await outage(database, since=tried)
        assert worker.counts.handled == 0
        assert await stage.letters(queue) == []
        database.up = True
        # Within seconds: a machine that does other things as well may take some more.
        # A busy broker may forget acks of the worker that has stopped, so that some come twice.
        await eventually(lambda: len(set(database.stored)) == EVENTS, "all stored", timeout_s=20)
    assert set(database.stored) == {str(number) for number in range(EVENTS)}
    assert len(database.stored) == EVENTS or restarts
    assert await stage.letters(queue) == []


@pytest.mark.parametrize("priorities", [None, 3])
async def test_events_that_keep_failing_hold_up_no_others(
    stage: Stage, priorities: int | None
) -> None:
    attempts: list[tuple[str, int]] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        attempts.append((event.order_id, ctx.attempt))
        if event.order_id.startswith("dead host"):
            raise ConnectionRefusedError

    plugin = stage.plugin(
        handle,
        OrderPlaced,
        concurrency=1,
        retry=Retry("1h"),
        kill_switch=KillSwitch(ConnectionError, failures=1, pause="20ms"),
        priorities=priorities,
    )
    await stage.declare(plugin)
    for number in range(5):
        await stage.publish(OrderPlaced(order_id=f"dead host {number}"), priority=1)
    for number in range(10):
        await stage.publish(OrderPlaced(order_id=str(number)), priority=1)
    with capture_logs() as logs:
        async with stage.working(plugin) as worker:
            await eventually(lambda: worker.counts.handled == 10)
    told = [line["event"].split(",")[0] for line in logs if "kill switch" in line["event"]]
    assert told[:2] == ["kill switch open", "kill switch closed"]
    assert {attempt for _, attempt in attempts} == {1}
    if not priorities:  # where no returns are counted, what was near the first one went with it
        assert [order for order, _ in attempts[:5]] == [
            f"dead host {number}" for number in range(5)
        ]
    assert (worker.counts.quarantined, worker.counts.dead_lettered) == (0, {})


async def test_nothing_is_held_while_the_queue_pauses(stage: Stage) -> None:
    tried = 0

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        nonlocal tried
        tried += 1
        raise ConnectionRefusedError

    switch = KillSwitch(ConnectionError, failures=1, pause="1h")
    plugin = stage.plugin(handle, OrderPlaced, concurrency=1, kill_switch=switch)
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    sent = [await stage.publish(OrderPlaced(order_id=str(number)), priority=7) for number in (1, 2)]

    async def all_wait() -> bool:
        return tried == 1 and await stage.waiting_in(queue) == 2

    async with stage.working(plugin) as worker:
        await eventually(all_wait)
    assert (tried, worker.counts.handed_back) == (1, 2)
    left = [await stage.raw(queue) for _ in sent]
    assert [message.message_id for message in left] == [sent[1].id, sent[0].id]
    assert left[1].headers["evw-attempt"] == 0
    assert left[1].priority == 7
    assert not left[1].redelivered


async def test_one_is_tried_at_a_time_and_then_as_many_as_ever(stage: Stage) -> None:
    up, tried, running, together = False, 0, 0, asyncio.Event()

    async def fail() -> None:
        nonlocal tried
        tried += 1
        await asyncio.sleep(0.01)  # long enough to meet another, if there were one
        assert tried <= 3 or running == 1
        raise ConnectionRefusedError

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        nonlocal running
        running += 1
        try:
            if not up:
                await fail()
            if running == 3:
                together.set()
            if worker.counts.handled:
                await together.wait()
        finally:
            running -= 1

    switch = KillSwitch(ConnectionError, failures=1, pause="20ms")
    plugin = stage.plugin(handle, OrderPlaced, concurrency=3, kill_switch=switch)
    await stage.declare(plugin)
    for number in range(9):
        await stage.publish(OrderPlaced(order_id=str(number)))
    async with stage.working(plugin) as worker:
        await eventually(lambda: tried > 8)
        up = True
        await eventually(lambda: worker.counts.handled == 9)
    assert worker.counts.dead_lettered == {}


async def test_a_burst_outlasts_a_pause(stage: Stage) -> None:
    runs: list[str] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        runs.append(event.order_id)
        if len(runs) == 1:
            raise ConnectionRefusedError

    switch = KillSwitch(ConnectionError, failures=1, pause="1s")
    plugin = stage.plugin(handle, OrderPlaced, concurrency=1, prefetch=1, kill_switch=switch)
    await stage.declare(plugin)
    for number in (1, 2):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert worker.counts.handled == 2
    assert runs == ["1", "2", "1"]


async def test_the_others_of_a_shared_queue_are_served_between_two_probes(stage: Stage) -> None:
    tried, stored = 0, list[int]()
    plugin, queue = Plugin("billing"), stage.queue("shared")

    @plugin.consumer(
        name="failing",
        queue=queue,
        retry=Retry(),
        kill_switch=KillSwitch(ConnectionError, failures=1, pause="20ms"),
    )
    async def fail(event: OrderPlaced, ctx: Context) -> None:
        nonlocal tried
        tried += 1
        raise ConnectionRefusedError

    @plugin.consumer(name="other", queue=queue, retry=Retry())
    async def store(event: Refund, ctx: Context) -> None:
        stored.append(event.number)

    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="1"))
    async with stage.working(plugin):
        await eventually(lambda: tried > 1, "a probe")
        for number in range(20):
            await stage.publish(Refund(number=number))
        await eventually(lambda: len(stored) == 20)
    assert await stage.letters(queue) == []


async def outage(database: Database, *, since: int) -> None:
    """It lasts until the switch has opened, and so long that it has been probed."""
    until = time.monotonic() + OUTAGE_S

    def lasted() -> bool:
        return database.tried > since + OPENED and time.monotonic() >= until

    await eventually(lasted, "attempts that fail", timeout_s=OUTAGE_S + 20)


async def test_other_errors_open_nothing(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, kill_switch=QUICK)
    await stage.declare(plugin)
    for number in range(20):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 20}


async def test_a_stop_while_it_pauses_loses_nothing(stage: Stage) -> None:
    database = Database()
    plugin = stage.plugin(database.store, OrderPlaced, kill_switch=QUICK)
    async with stage.working(plugin) as worker:
        for number in range(50):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: database.tried > 10, "the switch to open and to probe")
        worker.stop()
    database.up = True
    await stage.work(plugin)
    lost_to_first_failures = len(await stage.letters(plugin.consumers[0].queue))
    assert lost_to_first_failures <= QUICK.failures
    assert len(set(database.stored)) + lost_to_first_failures == 50


async def test_what_is_discarded_on_purpose_pauses_nothing(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        raise Discard("not ours")

    any_error = KillSwitch(failures=3, pause="100ms")
    plugin = stage.plugin(handle, OrderPlaced, kill_switch=any_error)
    await stage.declare(plugin)
    for number in range(8):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert (worker.counts.discarded, worker.counts.handed_back) == (8, 0)


async def test_a_mute_error_pauses_all_the_same(stage: Stage) -> None:
    up = False

    class MuteError(ConnectionError):
        def __str__(self) -> str:
            raise AttributeError("code")

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        if not up:
            raise MuteError

    plugin = stage.plugin(handle, OrderPlaced, kill_switch=KillSwitch(ConnectionError, failures=1))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="1"))
    with capture_logs() as logs:
        async with stage.working(plugin):
            await eventually(lambda: any("kill switch open" in line["event"] for line in logs))
    up = True
    worker = await stage.work(plugin)
    assert worker.counts.handled == 1
    assert not [line for line in logs if "defect" in line["event"]]


async def test_a_stop_while_the_queue_is_being_paused_loses_no_ack(
    stage: Stage, wire: Wire
) -> None:
    may_end = asyncio.Event()
    long_began = asyncio.Event()

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "long":
            long_began.set()
            await may_end.wait()
            return
        await long_began.wait()
        wire.stall()  # the subscription's end gets no answer until later
        raise ConnectionError

    switch = KillSwitch(ConnectionError, failures=1, pause="60s")
    plugin = stage.plugin(charge, OrderPlaced, kill_switch=switch, concurrency=2)
    with capture_logs() as logged:
        async with stage.working(plugin, url=wire.url) as worker:
            await stage.publish(OrderPlaced(order_id="long"))
            await stage.publish(OrderPlaced(order_id="down"))
            await eventually(lambda: any("kill switch open" in line["event"] for line in logged))
            await turns()
            worker.stop()
            await turns()
            wire.flow()
            may_end.set()
    assert worker.counts.handled == 1

    async def is_back() -> bool:
        return await stage.waiting_in(stage.queue("charge")) == 1

    await eventually(is_back, "the broker to take back what was not settled")


async def test_a_handler_that_cancels_its_own_task_is_put_aside_as_others_are(stage: Stage) -> None:
    attempts = 0

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 3:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            raise ConnectionError

    switch = KillSwitch(ConnectionError, failures=1, pause="50ms")
    plugin = stage.plugin(charge, OrderPlaced, kill_switch=switch, concurrency=1)
    async with stage.working(plugin) as worker:
        for number in range(3):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: worker.counts.handled == 3)


async def turns() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
