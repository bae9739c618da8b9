"""Worker processes that are told to stop, or killed, in the middle of a thousand events."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.worker_process import make_plugin

ROOT = Path(__file__).resolve().parents[2]
EVENTS = 1_000
NEVER = {f"e-{number}" for number in range(0, EVENTS, 100)}
ALL = {f"e-{number}" for number in range(EVENTS)}


class Processes:
    """Worker processes that share a queue and write what they did into one file."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.queue = stage.queue("charge")
        self.priorities: int | None = None
        self._done = folder / "done"
        self._log = folder / "log"
        self._running: list[asyncio.subprocess.Process] = []

    async def publish_all(self) -> None:
        plugin = make_plugin(self.queue, -1, priorities=self.priorities, concurrency=1)
        await self.stage.declare(plugin)
        await asyncio.gather(
            *(
                self.stage.publish(OrderPlaced(order_id=str(number)), id=f"e-{number}")
                for number in range(EVENTS)
            )
        )

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        if self.priorities:
            options = (*options, "--priorities", str(self.priorities))
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.workers.worker_process"),
                *("--url", self.stage.url, "--exchange", self.stage.exchange),
                *("--queue", self.queue, "--done", str(self._done), *options),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self._running.append(process)
        return process

    async def finish(self) -> None:
        """Have a new process work until every queue is empty."""
        process = await self.start("--burst")
        assert await asyncio.wait_for(process.wait(), 120) == 0, self._log.read_text()

    def handled(self) -> Counter[str]:
        if not self._done.exists():
            return Counter()
        return Counter(line.split()[0] for line in self._done.read_text().splitlines())

    async def until_handled(self, so_many: int) -> None:
        await eventually(
            lambda: self.handled().total() >= so_many, f"{so_many} handled", timeout_s=60
        )

    async def check_nothing_is_lost(self) -> None:
        letters = await self.stage.letters(self.queue)
        assert {letter.failure.reason for letter in letters} == {"given-up"}
        assert {letter.id for letter in letters} == NEVER
        assert set(self.handled()) == ALL - NEVER
        assert await self.stage.waiting_in(self.queue) == 0

    async def end(self) -> None:
        for process in self._running:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def processes(stage: Stage, tmp_path: Path) -> AsyncIterator[Processes]:
    processes = Processes(stage, tmp_path)
    yield processes
    await processes.end()


async def test_sigterm_repeats_nothing_and_loses_nothing(processes: Processes) -> None:
    await processes.publish_all()
    for so_many in (150, 400, 650):
        process = await processes.start()
        await processes.until_handled(so_many)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert processes.handled().total() < EVENTS - len(NEVER), "it was stopped in the middle"
    await processes.finish()
    await processes.check_nothing_is_lost()
    assert set(processes.handled().values()) == {1}
    # In = handled + dead-lettered, exactly: a graceful stop is no failure and no repetition.
    letters = await processes.stage.letters(processes.queue)
    assert processes.handled().total() + len(letters) == EVENTS
    assert {letter.failure.attempts for letter in letters} == {1}


@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "classic"])
async def test_kill_9_loses_nothing(processes: Processes, priorities: int | None) -> None:
    processes.priorities = priorities
    await processes.publish_all()
    for so_many in (150, 400, 650):
        process = await processes.start()
        await processes.until_handled(so_many)
        os.kill(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        assert processes.handled().total() < EVENTS - len(NEVER), "it was killed in the middle"
    await processes.finish()
    await processes.check_nothing_is_lost()
    # Handled twice can only be what a process had in hand when it was killed: its concurrency.
    repeated = [id for id, times in processes.handled().items() if times > 1]
    assert len(repeated) <= 3 * 20


async def test_processes_that_die_beside_others_leave_their_work_to_them(
    processes: Processes,
) -> None:
    await processes.publish_all()
    survivor = await processes.start()
    for so_many in (100, 300, 500):
        victim = await processes.start()
        await processes.until_handled(so_many)
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
    await eventually(lambda: set(processes.handled()) == ALL - NEVER, timeout_s=60)
    survivor.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(survivor.wait(), 60) == 0
    await processes.finish()
    await processes.check_nothing_is_lost()
