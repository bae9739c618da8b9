"""The broker's time: the event loop's, until somebody puts it forward.

What waits in queues waits by this clock, so a test need not wait for it. Heartbeats and whatever
else the clients are part of go by the loop's own time, which nobody changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Timer:
    """A call to come. It can be cancelled."""

    clock: Clock
    when: float
    call: Callable[[], object]
    handle: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        self.clock.forget(self)

    def ring(self) -> None:
        self.clock.forget(self)
        self.call()


class Clock:
    """Seconds that go forward by themselves, and further by `put_forward`."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._timers: dict[Timer, None] = {}

    def time(self) -> float:
        """Now, in seconds since some moment."""
        return asyncio.get_running_loop().time() + self._ahead_s

    def call_at(self, when: float, call: Callable[[], object]) -> Timer:
        """Have it called at this time of the clock's."""
        timer = Timer(self, when, call)
        self._timers[timer] = None
        self._wind(timer)
        return timer

    def call_later(self, delay_s: float, call: Callable[[], object]) -> Timer:
        """Have it called after so many seconds."""
        return self.call_at(self.time() + delay_s, call)

    def due_in_s(self) -> float | None:
        """How long until the next timer rings, 0 if it is about to; None if there is none."""
        if not self._timers:
            return None
        return max(0.0, min(timer.when for timer in self._timers) - self.time())

    def put_forward(self, seconds: float) -> None:
        """Let so much time have passed: what is due then happens at once, in its order."""
        self._ahead_s += seconds
        for timer in sorted(self._timers, key=lambda each: each.when):
            self._wind(timer)

    def forget(self, timer: Timer) -> None:
        """It is not to ring any more."""
        self._timers.pop(timer, None)
        if timer.handle is not None:
            timer.handle.cancel()

    def _wind(self, timer: Timer) -> None:
        if timer.handle is not None:
            timer.handle.cancel()
        loop = asyncio.get_running_loop()
        timer.handle = loop.call_at(timer.when - self._ahead_s, timer.ring)
