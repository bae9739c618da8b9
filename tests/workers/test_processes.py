"""Worker processes that are told to stop, or killed, in the middle of a thousand events."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.waiting import eventually
from tests.workers.processes import Processes
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.worker_process import make_plugin

EVENTS = 1_000
NEVER = {f"e-{number}" for number in range(0, EVENTS, 100)}
ALL = {f"e-{number}" for number in range(EVENTS)}


@pytest.fixture
def priorities() -> int | None:
    return None


@pytest.fixture
async def processes(
    stage: Stage, tmp_path: Path, priorities: int | None
) -> AsyncIterator[Processes]:
    queue = stage.queue("charge")
    processes = Processes(stage, tmp_path, partial(make_plugin, queue, priorities=priorities))
    yield processes
    await processes.end()


async def publish_all(processes: Processes) -> None:
    await processes.stage.declare(processes.here())
    await asyncio.gather(
        *(
            processes.stage.publish(OrderPlaced(order_id=str(number)), id=f"e-{number}")
            for number in range(EVENTS)
        )
    )


async def check_nothing_is_lost(processes: Processes) -> None:
    stage, queue = processes.stage, processes.stage.queue("charge")
    letters = await stage.letters(queue)
    assert {letter.failure.reason for letter in letters} == {"given-up"}
    assert {letter.id for letter in letters} == NEVER
    assert set(processes.handled()) == ALL - NEVER
    assert await stage.waiting_in(queue) == 0


async def test_sigterm_repeats_nothing_and_loses_nothing(processes: Processes) -> None:
    await publish_all(processes)
    for so_many in (150, 400, 650):
        process = processes.start()
        await processes.until_handled(so_many)
        process.stop()
        assert await process.ended() == 0
        assert processes.handled().total() < EVENTS - len(NEVER), "it was stopped in the middle"
    await processes.finish()
    await check_nothing_is_lost(processes)
    assert set(processes.handled().values()) == {1}
    # In = handled + dead-lettered, exactly: a graceful stop is no failure and no repetition.
    letters = await processes.stage.letters(processes.stage.queue("charge"))
    assert processes.handled().total() + len(letters) == EVENTS
    assert {letter.failure.attempts for letter in letters} == {1}


@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "classic"])
async def test_kill_9_loses_nothing(processes: Processes, priorities: int | None) -> None:
    await publish_all(processes)
    for so_many in (150, 400, 650):
        process = processes.start()
        await processes.until_handled(so_many)
        process.kill()
        assert await process.ended() == -signal.SIGKILL
        assert processes.handled().total() < EVENTS - len(NEVER), "it was killed in the middle"
    await processes.finish()
    await check_nothing_is_lost(processes)
    # Handled twice can only be what a process had in hand when it was killed: its concurrency.
    repeated = [id for id, times in processes.handled().items() if times > 1]
    assert len(repeated) <= 3 * 20


async def test_processes_that_die_beside_others_leave_their_work_to_them(
    processes: Processes,
) -> None:
    await publish_all(processes)
    survivor = processes.start()
    for so_many in (100, 300, 500):
        victim = processes.start()
        await processes.until_handled(so_many)
        victim.kill()
        await victim.ended()
    await eventually(lambda: set(processes.handled()) == ALL - NEVER, timeout_s=60)
    survivor.stop()
    assert await survivor.ended() == 0
    await processes.finish()
    await check_nothing_is_lost(processes)
