"""The pace: so many a second, spread evenly."""

from __future__ import annotations

import asyncio

_BEHIND_S = 0.05  # how far it may fall behind and still catch up


class Pace:
    """Lets its caller through `rate` times a second; without a rate at once."""

    def __init__(self, rate: float | None) -> None:
        self._interval_s = 1 / rate if rate else 0.0
        self._due: float | None = None

    async def wait(self) -> None:
        """Until the next one is due."""
        if not self._interval_s:
            return
        now = asyncio.get_running_loop().time()
        due = now if self._due is None else max(self._due, now - _BEHIND_S)
        self._due = due + self._interval_s
        if due > now:
            await asyncio.sleep(due - now)
