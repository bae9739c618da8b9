"""Messages that kill their worker, among others that only happened to be near."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from evworker.workers import Plugin, Retry
from tests.waiting import eventually
from tests.workers.processes import Processes
from tests.workers.stage import OrderPlaced, Stage, running, until_ready
from tests.workers.worker_process import KILLED, make_plugin

GOOD = [number for number in range(1, 600) if number % 100][:500]
MOST_CRASHES = 8


@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "priority"])
async def test_a_killer_among_five_hundred_is_the_only_dead_letter(
    stage: Stage, tmp_path: Path, priorities: int | None
) -> None:
    queue = stage.queue("charge")
    processes = Processes(stage, tmp_path, partial(make_plugin, queue, priorities=priorities))
    await stage.declare(processes.here())
    for numbers in (GOOD[:250], [-1], GOOD[250:]):
        await asyncio.gather(
            *(stage.publish(OrderPlaced(order_id=str(n)), id=f"e-{n}") for n in numbers)
        )

    codes: list[int] = []
    while 0 not in codes and len(codes) < MOST_CRASHES:
        codes.append(await processes.start(burst=True).ended())

    assert codes == [KILLED] * (len(codes) - 1) + [0]
    assert set(processes.handled()) == {f"e-{number}" for number in GOOD}
    letter = await stage.letter(queue)
    assert (letter.id, letter.failure.reason) == ("e--1", "crashed")
    assert letter.failure.origin_routing_key == "orders.placed"
    assert "died" in str(letter.failure.error_message)


async def test_nothing_else_runs_beside_what_is_in_quarantine(stage: Stage) -> None:
    started: list[str] = []
    may_end = asyncio.Event()

    async def handle(event: OrderPlaced, ctx: object) -> None:
        started.append(event.order_id)
        if event.order_id == "suspect":
            await may_end.wait()

    plugin = stage.plugin(handle, OrderPlaced)
    other = Plugin("other")
    other.consumer(name="other", queue=stage.queue("other"), retry=Retry())(handle)
    queue = plugin.consumers[0].queue
    await stage.declare(plugin, other)
    properties = {"message_id": "x", "message_type": "orders.placed"}
    await stage.send(b'{"order_id": "suspect"}', queue=f"{queue}.quarantine", **properties)
    async with stage.working(plugin, other) as worker:
        await eventually(lambda: started == ["suspect"])
        await stage.publish(OrderPlaced(order_id="beside"))

        async def taken() -> bool:
            return not await stage.waiting_in(queue) and not await stage.waiting_in(
                f"{stage.exchange}.other"
            )

        await eventually(taken, "the worker to take both")
        assert started == ["suspect"]
        may_end.set()
        await eventually(lambda: worker.counts.handled == 3)


@pytest.mark.parametrize("count", [1, -5])
async def test_a_count_of_another_queue_hides_no_killer(stage: Stage, count: int) -> None:
    async def handle(event: OrderPlaced, ctx: object) -> None:
        await asyncio.Event().wait()

    plugin = stage.plugin(handle, OrderPlaced, priorities=3)
    await stage.declare(plugin)
    # As of a message that someone has moved here from a quorum queue.
    headers = {"x-delivery-count": count}
    await stage.send(b'{"order_id": "1"}', headers=headers, message_id="x")
    first = stage.worker(plugin)
    async with running(first):
        await until_ready(first)

        async def taken() -> bool:
            return not await stage.waiting_in(plugin.consumers[0].queue)

        await eventually(taken)
        first.stop()
        first.stop()
    async with stage.working(plugin) as worker:
        await eventually(lambda: worker.counts.quarantined == 1)
        worker.stop()
        worker.stop()


async def test_a_count_of_another_queue_makes_no_suspect(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: object) -> None:
        pass

    plugin = stage.plugin(handle, OrderPlaced)
    await stage.declare(plugin)
    # As of a message that someone has moved here from another quorum queue.
    headers = {"x-delivery-count": 5}
    await stage.send(b'{"order_id": "1"}', headers=headers, message_id="x")
    async with stage.working(plugin) as worker:
        await eventually(lambda: worker.counts.handled == 1)
    assert worker.counts.quarantined == 0


async def test_what_is_handed_back_by_a_stop_is_no_suspect(stage: Stage) -> None:
    held = asyncio.Event()
    started = asyncio.Event()

    async def handle(event: OrderPlaced, ctx: object) -> None:
        started.set()
        await held.wait()

    plugin = stage.plugin(handle, OrderPlaced, concurrency=1, prefetch=10)
    async with stage.working(plugin) as worker:
        for number in range(10):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await started.wait()
        worker.stop()
        held.set()
        # Not left before: a second stop would leave it to the channel's end to give them back.
        await eventually(lambda: worker.counts.handed_back > 0)
    after = await stage.work(plugin)
    assert after.counts.quarantined == 0
    assert worker.counts.handled + after.counts.handled == 10
