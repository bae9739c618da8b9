"""Solitude: either many attempts run in a worker, or one alone.

What runs alone is to blame if the worker dies. So nothing else may run meanwhile, of no queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Solitude:
    """One for each worker: all its attempts pass through here."""

    def __init__(self) -> None:
        self.is_wanted = False
        """Whether something runs alone, or waits to."""
        self._one_alone = asyncio.Lock()
        self._nobody_alone = asyncio.Event()
        self._nobody_alone.set()
        self._nobody = asyncio.Event()
        """Set once nothing runs, while solitude is wanted."""
        self._running = 0

    async def nobody_alone(self) -> None:
        """Wait until nothing runs alone or waits to, and what begins at once runs beside others."""
        while self.is_wanted:
            await self._nobody_alone.wait()

    def begin_among_others(self) -> None:
        """Something runs beside others, until `end_among_others`; not while solitude is wanted."""
        self._running += 1

    def end_among_others(self) -> None:
        """It has ended."""
        self._running -= 1
        if self.is_wanted and not self._running:
            self._nobody.set()

    @asynccontextmanager
    async def alone(self, *, patience_s: float) -> AsyncIterator[None]:
        """Run alone, once all that runs has ended; nothing else begins meanwhile.

        Raises TimeoutError when something still runs after `patience_s`, and lets the others go on.
        """
        async with self._one_alone:
            self.is_wanted = True
            self._nobody_alone.clear()
            self._nobody.clear()
            try:
                if self._running:
                    async with asyncio.timeout(patience_s):
                        await self._nobody.wait()
                yield
            finally:
                self.is_wanted = False
                self._nobody_alone.set()
