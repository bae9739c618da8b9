"""The deadlines of a consumer's attempts, with one timer for all of them.

A timer in the event loop costs as much as handling a small message. But the attempts of a consumer
all have the same time, so they are due in the order in which they began: one timer does, for the
first of them.
"""

from __future__ import annotations

import asyncio


class Deadlines:
    """Has those time out that take longer than `timeout_s` seconds; with None, none."""

    def __init__(self, timeout_s: float | None, loop: asyncio.AbstractEventLoop) -> None:
        self._timeout_s = timeout_s
        self._loop = loop
        self._due_at: dict[asyncio.Timeout, float] = {}
        """Of all that run, in this order."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, started_at: float) -> asyncio.Timeout:
        """A timeout, to be entered at once, and `end`ed when it has been left.

        None of those before it began later.
        """
        timeout = asyncio.timeout_at(None)
        if self._timeout_s is not None:
            due_at = self._due_at[timeout] = started_at + self._timeout_s
            if self._timer is None:
                self._timer = self._loop.call_at(due_at, self._expire)
        return timeout

    def end(self, timeout: asyncio.Timeout) -> None:
        """It has been left."""
        self._due_at.pop(timeout, None)

    def close(self) -> None:
        """Have none time out any more."""
        self._due_at.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for timeout, due_at in self._due_at.items():
            if due_at > now:  # as a rule, since the one that the timer was for has long been left
                self._timer = self._loop.call_at(due_at, self._expire)
                return
            if timeout.when() is None:
                timeout.reschedule(due_at)
