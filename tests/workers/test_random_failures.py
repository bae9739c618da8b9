"""Whatever comes together: no event is missing in the end, and few are there twice.

Handlers that end in every way there is, while their worker is killed and stopped, its connections
are cut, and what it depends on goes down. All of it is drawn from a seed, which is in the name of
the test; EVWORKER_TEST_SEEDS says which, and how many (`make test-long` takes new ones). A process
is killed at a moment of its own, so that a failure may need a few runs to come again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.dicing_worker import A_WAIT, PREFETCH, make_dicing
from tests.workers.processes import Processes, WorkerProcess
from tests.workers.stage import SOON, OrderPlaced, Stage
from tests.workers.worker_process import KILLED

SEEDS = os.environ.get("EVWORKER_TEST_SEEDS", "1").split()
EVENTS = 300
MOMENTS = 8
MOST_BETWEEN = 20  # attempts from one moment to the next: all moments come before all events ended
MOST_RETURNED = PREFETCH + 2  # by one worker's end: what it took, one to probe with, one run alone


class Ordeal:
    """A worker that something happens to, again and again; one that dies of it is followed."""

    def __init__(self, processes: Processes, proxy: Proxy, seed: int, outage: Path) -> None:
        self._processes = processes
        self._proxy = proxy
        self._chance = random.Random(seed)
        self._outage = outage
        self._worker = self._start()
        self.disturbances = 0
        """How often the broker took back what a worker had, without knowing what it had done."""

    async def go_through(self) -> None:
        for _ in range(MOMENTS):
            await self._attempts(self._chance.randint(1, MOST_BETWEEN))
            happen = self._chance.choice([self._kill, self._stop, self._cut, self._break_down])
            await happen()
        await self._end()
        while await self._processes.start(burst=True).ended() != 0:
            self.disturbances += 1

    async def _kill(self) -> None:
        self._worker.kill()
        self._note_end(await self._worker.ended())
        self._worker = self._start()

    async def _stop(self) -> None:
        await self._end()
        self._worker = self._start()

    async def _end(self) -> None:
        self._worker.stop()
        self._note_end(await self._worker.ended())

    async def _cut(self) -> None:
        self._proxy.cut()
        self.disturbances += 1

    async def _break_down(self) -> None:
        """What the handler depends on is down for some attempts."""
        self._outage.touch()
        await self._attempts(self._chance.randint(1, MOST_BETWEEN))
        self._outage.unlink()

    async def _attempts(self, so_many: int) -> None:
        """Wait for so many more of them, with a worker that is there."""
        until = len(self._processes.done()) + so_many

        def reached() -> bool:
            if self._worker.code is not None:
                self._note_end(self._worker.code)
                self._worker = self._start()
            return len(self._processes.done()) >= until

        await eventually(reached, f"{so_many} more attempts", timeout_s=60)

    def _note_end(self, code: int) -> None:
        # A worker can be told to stop before it has learnt how, and crash before it has stopped.
        assert code in (0, -SIGTERM, -SIGKILL, KILLED), self._processes.log()
        self.disturbances += code != 0

    def _start(self) -> WorkerProcess:
        return self._processes.start(url=self._proxy.url)


@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "priority"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_published_is_succeeded_or_discarded_or_dead_lettered(
    stage: Stage, proxy: Proxy, tmp_path: Path, seed: str, priorities: int | None
) -> None:
    queue, outage = stage.queue("charge"), tmp_path / "outage"
    make = partial(make_dicing, queue, seed=int(seed), priorities=priorities, outage=outage)
    processes = Processes(stage, tmp_path, make)
    await stage.declare(processes.here())
    published = [f"e-{number}" for number in range(EVENTS)]
    await asyncio.gather(
        *(stage.publish(OrderPlaced(order_id="42"), id=its_id) for its_id in published)
    )
    await proxy.open()
    ordeal = Ordeal(processes, proxy, int(seed), outage)
    await ordeal.go_through()

    letters = await stage.letters(queue)
    ended = Counter(str(letter.id) for letter in letters)
    for line in processes.done():
        its_id, outcome = line.split(maxsplit=1)
        ended[its_id] += outcome in ("succeed", "discard")
    assert set(published) == set(+ended), f"seed {seed}"
    assert {letter.failure.reason for letter in letters} <= {"failed", "given-up", "crashed"}
    repeated = ended.total() - EVENTS
    assert repeated <= ordeal.disturbances * MOST_RETURNED
    for end in ("", ".quarantine", f".retry.{SOON}", f".retry.{A_WAIT}"):
        assert await stage.waiting_in(f"{queue}{end}") == 0
