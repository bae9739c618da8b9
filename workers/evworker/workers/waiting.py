"""Where deliveries wait for one of several tasks, each of which is woken only if there is work."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

_WOKEN_BY_EACH = 2


class WaitingLine(Generic[T]):
    """First come, first served, of any number of tasks.

    An asyncio.Queue wakes a task for each item, at several times the cost of handling one where
    handlers don't suspend. Here an item wakes one task, and whoever has been woken takes an item
    and wakes two more if others are left. So one that gets through them all at once is nearly
    alone, and where handlers suspend, all tasks are at work within a few turns of the loop.
    """

    def __init__(self) -> None:
        self.items: deque[T] = deque()
        """Whoever finds any here may take the first at once."""
        self._sleepers: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._waking = 0
        """How many have been woken and have not looked yet."""

    def put(self, item: T) -> None:
        """Put it at the end of the line."""
        self.items.append(item)
        if not self._waking:
            self._wake(1)

    async def take(self) -> T:
        """The first in the line, once there is one."""
        while not self.items:
            sleeper = self._loop.create_future()
            self._sleepers.append(sleeper)
            try:
                await sleeper
            except BaseException:
                if sleeper.cancelled():
                    with suppress(ValueError):  # who woke others has passed it over
                        self._sleepers.remove(sleeper)
                else:  # somebody else must look in its place
                    self._woken()
                raise
            self._woken(taking=1)
        return self.items.popleft()

    def _woken(self, *, taking: int = 0) -> None:
        self._waking -= 1
        left = len(self.items) - taking
        if left > 0:
            self._wake(min(left, _WOKEN_BY_EACH))

    def _wake(self, most: int) -> None:
        while most and self._sleepers:
            sleeper = self._sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                self._waking += 1
                most -= 1
