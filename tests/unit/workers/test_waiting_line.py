"""The line in which deliveries wait for a task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given
from hypothesis import strategies as st

from evworker.workers.waiting import WaitingLine
from tests.waiting import eventually


async def turns(number: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(number):
        await asyncio.sleep(0)


class Crew:
    """Tasks that take from one line, and what each of them has taken."""

    def __init__(self, size: int, handle: Callable[[], Awaitable[object]] | None = None) -> None:
        self.line = WaitingLine[int]()
        self.taken: list[tuple[int, int]] = []
        self._handle = handle
        self.tasks = [asyncio.create_task(self._work(number)) for number in range(size)]

    async def _work(self, number: int) -> None:
        while True:
            item = await self.line.take()
            self.taken.append((number, item))
            if self._handle is not None:
                await self._handle()

    @property
    def items(self) -> list[int]:
        return [item for _, item in self.taken]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_handlers_that_do_not_suspend_wake_few_tasks() -> None:
    crew = Crew(100)
    await turns()
    for item in range(50):
        crew.line.put(item)
    await turns()
    assert crew.items == list(range(50))
    assert len({number for number, _ in crew.taken}) == 1
    await crew.end()


async def test_handlers_that_suspend_all_run_at_once() -> None:
    for_ever = asyncio.Event()

    async def handle() -> None:
        await for_ever.wait()

    crew = Crew(100, handle)
    await turns()
    for item in range(150):
        crew.line.put(item)
    await turns()
    assert sorted(crew.items) == list(range(100))
    assert len(crew.line.items) == 50
    for_ever.set()
    await eventually(lambda: len(crew.taken) == 150)
    await crew.end()


async def test_who_is_cancelled_after_it_was_woken_leaves_the_item_to_another() -> None:
    crew = Crew(2)
    await turns()
    crew.line.put(1)
    crew.tasks[0].cancel()  # the first to sleep is the first to be woken
    await turns()
    assert crew.taken == [(1, 1)]
    await crew.end()


@given(
    steps=st.lists(st.sampled_from(["put", "turn", "cancel", "finish"]), max_size=60),
    size=st.integers(1, 5),
)
def test_no_item_is_lost_or_left_while_a_task_sleeps(steps: list[str], size: int) -> None:
    async def run() -> None:
        may_finish = asyncio.Semaphore(0)
        crew = Crew(size, may_finish.acquire)
        await turns()
        alive, put = list(crew.tasks), 0
        for step in steps:
            match step:
                case "put":
                    crew.line.put(put)
                    put += 1
                case "turn":
                    await asyncio.sleep(0)
                case "cancel" if len(alive) > 1:
                    alive.pop(0).cancel()
                case "finish":
                    may_finish.release()
        for _ in range(put):
            may_finish.release()
        await turns(10 * len(steps) + 20)
        assert sorted(crew.items) == list(range(put))
        await crew.end()

    asyncio.run(run())


async def test_a_sleeper_that_is_cancelled_in_the_turn_of_a_put_is_only_cancelled() -> None:
    crew = Crew(2)
    await turns()
    for task in crew.tasks:
        task.cancel()
    crew.line.put(1)
    ended = await asyncio.gather(*crew.tasks, return_exceptions=True)
    assert [type(end) for end in ended] == [asyncio.CancelledError] * 2
    assert crew.line.items.popleft() == 1
