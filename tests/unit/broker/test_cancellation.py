"""Cancelling for good: a task that swallows its first cancellations ends all the same."""

from __future__ import annotations

import asyncio

import pytest

from evworker.broker import cancellation
from evworker.broker.cancellation import (
    cancel_all,
    forgive_cancellation,
    is_cancelled,
    raise_if_cancelled,
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "_ASK_AGAIN_S", 0.01)


class Swallower:
    """A task's work, which swallows so many cancellations."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.enough = asyncio.Event()

    async def __call__(self) -> None:
        while not self.enough.is_set():
            try:
                await self.enough.wait()
            except asyncio.CancelledError:
                self.left -= 1
                if self.left < 0:
                    raise


async def started(work: Swallower) -> asyncio.Task[None]:
    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("times", [0, 1, 5])
async def test_a_task_is_cancelled_until_it_has_ended(times: int) -> None:
    task = await started(Swallower(times))
    async with asyncio.timeout(10):
        assert await cancel_all(task) == 0
    assert task.cancelled()


async def test_one_that_never_ends_is_counted() -> None:
    deaf, other = Swallower(10**9), Swallower(1)
    tasks = [await started(deaf), await started(deaf), await started(other)]
    async with asyncio.timeout(10):
        assert await cancel_all(*tasks, timeout_s=0.1) == 2
    assert [task.done() for task in tasks] == [False, False, True]
    deaf.enough.set()
    await asyncio.gather(*tasks[:2])


async def test_what_has_ended_is_left_as_it_is() -> None:
    async def fail() -> None:
        raise ValueError

    async def succeed() -> int:
        return 1

    failed, done = asyncio.create_task(fail()), asyncio.create_task(succeed())
    await asyncio.wait([failed, done])
    assert await cancel_all(failed, done) == 0
    assert done.result() == 1
    assert await cancel_all() == 0


async def test_one_that_fails_instead_has_ended_too() -> None:
    async def spoil() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError from None

    task = asyncio.create_task(spoil())
    await asyncio.sleep(0)
    assert await cancel_all(task) == 0
    assert isinstance(task.exception(), ValueError)


async def test_whoever_cancels_can_be_cancelled() -> None:
    deaf = Swallower(10**9)
    task = await started(deaf)
    cancelling = asyncio.create_task(cancel_all(task))
    await asyncio.sleep(0)
    cancelling.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await cancelling
    deaf.enough.set()
    await task


async def test_a_swallowed_cancellation_is_obeyed_later() -> None:
    async def swallow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert is_cancelled()
        raise_if_cancelled()

    task = asyncio.create_task(swallow())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_forgiven_cancellation_is_none() -> None:
    async def forgive() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            forgive_cancellation()
        assert not is_cancelled()
        raise_if_cancelled()
        return "went on"

    assert await asyncio.create_task(forgive()) == "went on"
