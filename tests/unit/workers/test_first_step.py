"""A coroutine begun at once, and awaited only if it suspends."""

from __future__ import annotations

import asyncio

import pytest

from evworker.workers.first_step import first_step


async def test_one_that_does_not_suspend_is_over_at_once() -> None:
    done: list[int] = []

    async def call() -> None:
        done.append(1)

    assert first_step(call()) is None
    assert done == [1]


async def test_one_that_suspends_goes_on_where_it_was() -> None:
    steps: list[object] = []
    future = asyncio.get_running_loop().create_future()

    async def call() -> None:
        steps.append("begun")
        steps.append(await future)
        await asyncio.sleep(0)
        steps.append("ended")

    rest = first_step(call())
    assert rest is not None
    assert steps == ["begun"]
    asyncio.get_running_loop().call_soon(future.set_result, "woken")
    await rest
    assert steps == ["begun", "woken", "ended"]


async def test_it_has_a_current_task_from_its_first_step_on() -> None:
    tasks: list[asyncio.Task[None] | None] = []

    async def call() -> None:
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    rest = first_step(call())
    assert rest is not None
    await rest
    assert tasks == [asyncio.current_task()] * 2


async def test_what_it_raises_comes_through_from_either_part() -> None:
    async def at_once() -> None:
        raise ValueError("at once")

    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    with pytest.raises(ValueError, match="at once"):
        first_step(at_once())
    rest = first_step(later())
    assert rest is not None
    with pytest.raises(ValueError, match="later"):
        await rest


async def test_a_cancellation_reaches_it_and_can_be_caught() -> None:
    caught: list[str] = []

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            caught.append("cancelled")
            await asyncio.sleep(0)
            caught.append("cleaned up")

    async def run() -> None:
        rest = first_step(call())
        assert rest is not None
        await rest

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert caught == ["cancelled", "cleaned up"]


async def test_what_is_no_coroutine_is_awaited_as_it_is() -> None:
    future = asyncio.get_running_loop().create_future()
    assert first_step(future) is future
    future.cancel()


async def test_one_that_raises_generator_exit_does_not_close_who_awaits_it() -> None:
    async def at_once() -> None:
        raise GeneratorExit

    async def later() -> None:
        await asyncio.sleep(0)
        raise GeneratorExit

    with pytest.raises(RuntimeError, match="raised GeneratorExit"):
        first_step(at_once())
    rest = first_step(later())
    assert rest is not None
    with pytest.raises(RuntimeError, match="raised GeneratorExit"):
        await rest


async def test_one_that_is_closed_ends_as_a_coroutine_does() -> None:
    ended: list[str] = []

    async def call() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("closed")

    async def around() -> None:
        rest = first_step(call())
        assert rest is not None
        await rest

    coroutine = around()
    coroutine.send(None)
    coroutine.close()
    assert ended == ["closed"]
