"""A worker under all the load that it can take: for long, and while what it runs on is killed.

How long the soak takes is EVWORKER_TEST_SOAK_S (`make test-long` takes an hour).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import structlog

from evworker.workers import Context
from tests.waiting import eventually
from tests.wire import Wire
from tests.workers.processes import Processes
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.worker_process import make_plugin

SOAK_S = float(os.environ.get("EVWORKER_TEST_SOAK_S", "8"))
"""More than the seven seconds after which a heartbeat of one second is missed too often."""

HEARTBEAT_S = 1 if SOAK_S <= 60 else 30
"""For an hour, nobody can promise that the machine has time for one each second."""

EVENTS = 3_000
PREFETCH = 500
AT_MOST_WAITING = 5_000
HELD_BY_A_PROCESS = 200  # the prefetch of a consumer whose concurrency is 100
ALL = {f"e-{number}" for number in range(EVENTS)}


async def publish(stage: Stage, count: int, *, first: int = 0) -> None:
    """Published ahead of others' patience: a few hundred are on their way at a time."""
    for start in range(first, first + count, 500):
        numbers = range(start, min(start + 500, first + count))
        await asyncio.gather(
            *(stage.publish(OrderPlaced(order_id=str(n)), id=f"e-{n}") for n in numbers)
        )


async def test_cuts_under_full_load_lose_nothing(stage: Stage, wire: Wire) -> None:
    handled: Counter[str] = Counter()
    cuts = [EVENTS // 5, EVENTS // 2, EVENTS * 4 // 5]

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        handled[ctx.envelope.id] += 1
        if handled.total() in cuts:
            wire.cut()

    plugin = stage.plugin(charge, OrderPlaced, concurrency=100, prefetch=PREFETCH)
    await stage.declare(plugin)
    await publish(stage, EVENTS)
    async with stage.working(plugin, url=wire.url):
        await eventually(lambda: set(handled) == ALL, timeout_s=60)
    # What was not acked yet came again, and no more than that.
    assert handled.total() - EVENTS <= len(cuts) * PREFETCH
    assert await stage.waiting_in(stage.queue("charge")) == 0


async def test_workers_killed_under_full_load_lose_nothing(stage: Stage, tmp_path: Path) -> None:
    queue = stage.queue("charge")
    of_all = partial(make_plugin, queue, priorities=None, concurrency=100)
    processes = Processes(stage, tmp_path, of_all)
    await stage.declare(processes.here())
    await publish(stage, EVENTS)
    kills = 3
    for kill in range(1, kills + 1):
        worker = processes.start()
        await eventually(partial(has_done, processes, kill * EVENTS // 5), timeout_s=60)
        worker.kill()
        await worker.ended()
    assert await processes.start(burst=True).ended() == 0
    done = processes.handled()
    assert set(done) == {id for id in ALL if int(id[2:]) % 100}
    # Each killed one had at most a prefetch of them done and not acked.
    assert done.total() - len(done) <= kills * HELD_BY_A_PROCESS
    assert await stage.waiting_in(queue) == 0


def has_done(processes: Processes, count: int) -> bool:
    return len(processes.handled()) >= count


@pytest.fixture
def quiet_logs() -> Iterator[None]:
    """Millions of lines that something was handled would fill the disk."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("quiet_logs")
async def test_a_soak(stage: Stage) -> None:
    """Nothing is missed, nothing piles up, and a busy connection is no dead one."""
    seen = [0]

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        seen[0] += 1

    plugin = stage.plugin(charge, OrderPlaced, concurrency=100, prefetch=PREFETCH)
    async with stage.working(plugin, url=f"{stage.url}?heartbeat={HEARTBEAT_S}") as worker:
        link = worker._consuming._link  # noqa: SLF001 - that it stays is seen nowhere else
        stop = asyncio.Event()
        loading = asyncio.create_task(load(stage, seen, stop))
        await asyncio.sleep(SOAK_S / 4)  # that time passes is the test
        warm = memory_bytes()
        await asyncio.sleep(SOAK_S * 3 / 4)
        grown = memory_bytes() - warm
        stop.set()
        published = await loading
        await eventually(lambda: seen[0] == published, timeout_s=60)
        await eventually(lambda: worker.counts.handled == published)
        assert worker._consuming._link is link  # noqa: SLF001 - see above
    assert await stage.waiting_in(stage.queue("charge")) == 0
    assert published > 100 * SOAK_S
    assert grown < 30_000_000


async def load(stage: Stage, seen: list[int], stop: asyncio.Event) -> int:
    """Publish as much as can be taken; how many that were."""
    published = 0
    while not stop.is_set():
        events = (OrderPlaced(order_id=str(published + n)) for n in range(AT_MOST_WAITING // 2))
        published += len(await stage.publisher.publish_many(events))
        await eventually(partial(keeps_up, seen, published - AT_MOST_WAITING), timeout_s=60)
    return published


def keeps_up(seen: list[int], count: int) -> bool:
    return seen[0] >= count


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
