"""Many attempts with the same time, and one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from evworker.workers.deadlines import Deadlines

SHORT_S = 0.01
LONG_S = 60.0


class LateError(TimeoutError):
    """What they end with here."""


class Stubborn(asyncio.Future[None]):
    def cancel(self, msg: object = None) -> bool:
        raise RuntimeError("not me")


class Attempts:
    """What `Deadlines` is asked for by those who run."""

    def __init__(self, timeout_s: float | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(timeout_s, self.loop, LateError)

    async def run(self, work: Awaitable[None], *, began_s_ago: float = 0.0) -> str:
        try:
            with self.deadlines.of(self.loop.time() - began_s_ago):
                await work
        except TimeoutError as error:
            return "late" if isinstance(error, LateError) else "raised by itself"
        return "done"


async def test_all_that_take_too_long_time_out_whoever_the_timer_was_for() -> None:
    attempts = Attempts(SHORT_S)
    never: asyncio.Future[None] = attempts.loop.create_future()
    early: asyncio.Future[None] = attempts.loop.create_future()
    first = asyncio.create_task(attempts.run(early))
    others = [asyncio.create_task(attempts.run(asyncio.shield(never))) for _ in range(3)]
    await asyncio.sleep(0)
    early.set_result(None)
    assert await first == "done"
    assert await asyncio.gather(*others) == ["late"] * 3
    # The timer has been used up; the next one sets it again.
    assert await attempts.run(never) == "late"


async def test_one_that_has_used_its_time_up_before_it_waits_is_late_at_once() -> None:
    attempts = Attempts(LONG_S)
    never: asyncio.Future[None] = attempts.loop.create_future()
    assert await attempts.run(never, began_s_ago=LONG_S + 1) == "late"
    # Even where it would wait for no more than its next turn, as with asyncio.timeout.
    assert await attempts.run(asyncio.sleep(0), began_s_ago=LONG_S + 1) == "late"


async def test_one_that_can_not_be_cancelled_costs_no_other_its_deadline() -> None:
    attempts = Attempts(SHORT_S)
    told: list[str] = []
    attempts.loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    stubborn = Stubborn()
    first = asyncio.create_task(attempts.run(stubborn))
    second = asyncio.create_task(attempts.run(attempts.loop.create_future()))
    assert await second == "late"
    assert told == ["not me"]
    stubborn.set_result(None)
    await first


class NoErrorsError(Exception):
    """A collection of them that is empty, and so false."""

    def __len__(self) -> int:
        return 0


async def test_the_error_in_hand_is_told_whatever_it_is_worth_as_a_condition() -> None:
    attempts = Attempts(SHORT_S)

    async def mend() -> None:
        try:
            await attempts.loop.create_future()
        except asyncio.CancelledError:
            raise TimeoutError from NoErrorsError()

    with pytest.raises(LateError) as raised, attempts.deadlines.of(attempts.loop.time()):
        await mend()
    assert isinstance(raised.value.__cause__, NoErrorsError)


async def test_nothing_times_out_without_a_time_or_after_the_close() -> None:
    untimed, closed = Attempts(None), Attempts(SHORT_S)
    timed = Attempts(SHORT_S * 2)
    works: list[asyncio.Future[None]] = [untimed.loop.create_future() for _ in range(3)]
    running = [
        asyncio.create_task(attempts.run(work))
        for attempts, work in zip((untimed, closed, timed), works, strict=True)
    ]
    await asyncio.sleep(0)
    closed.deadlines.close()
    assert await running[2] == "late"
    works[0].set_result(None)
    works[1].set_result(None)
    assert await asyncio.gather(*running[:2]) == ["done"] * 2


async def test_a_cancellation_and_an_error_of_its_own_stay_what_they_are() -> None:
    attempts = Attempts(LONG_S)
    failing: asyncio.Future[None] = attempts.loop.create_future()
    failing.set_exception(TimeoutError())
    assert await attempts.run(failing) == "raised by itself"
    cancelled = asyncio.create_task(attempts.run(attempts.loop.create_future()))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
