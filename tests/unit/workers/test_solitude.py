"""Solitude: either many run, or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from evworker.workers.solitude import Solitude
from tests.waiting import eventually


@asynccontextmanager
async def among_others(solitude: Solitude) -> AsyncIterator[None]:
    await solitude.nobody_alone()
    solitude.begin_among_others()
    yield
    solitude.end_among_others()


async def test_one_runs_alone_once_the_others_have_ended() -> None:
    solitude, told, may_end = Solitude(), [], asyncio.Event()

    async def alone() -> None:
        async with solitude.alone(patience_s=60):
            told.append("alone")
            await may_end.wait()

    async def beside() -> None:
        async with among_others(solitude):
            told.append("beside")

    async with asyncio.TaskGroup() as tasks:
        async with among_others(solitude), among_others(solitude):
            tasks.create_task(alone())
            await asyncio.sleep(0)
            tasks.create_task(beside())
            await asyncio.sleep(0)
            assert told == []
        await eventually(lambda: told == ["alone"])
        may_end.set()
    assert told == ["alone", "beside"]


async def test_who_waits_too_long_lets_the_others_go_on() -> None:
    solitude = Solitude()
    async with among_others(solitude):
        with pytest.raises(TimeoutError):
            async with solitude.alone(patience_s=0.01):
                raise AssertionError
        async with asyncio.timeout(5), among_others(solitude):
            pass
    async with solitude.alone(patience_s=5):
        pass
