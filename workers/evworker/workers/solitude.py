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
        self._one_alone = asyncio.Lock()
        self._nobody_alone = asyncio.Event()
        self._nobody_alone.set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._running = 0

    @property
    def is_wanted(self) -> bool:
        """Whether something runs alone, or waits to."""
        return not self._nobody_alone.is_set()

    async def nobody_alone(self) -> None:
        """Wait until nothing runs alone or waits to, and what begins at once runs beside others."""
        while not self._nobody_alone.is_set():
            await self._nobody_alone.wait()

    def begin_among_others(self) -> None:
        """Something runs beside others, until `end_among_others`; not while solitude is wanted."""
        self._running += 1
        self._nobody.clear()

    def end_among_others(self) -> None:
        """It has ended."""
        self._running -= 1
        if not self._running:
            self._nobody.set()

    @asynccontextmanager
    async def alone(self, *, patience_s: float) -> AsyncIterator[None]:
        """Run alone, once all that runs has ended; nothing else begins meanwhile.

        Raises TimeoutError when something still runs after `patience_s`, and lets the others go on.
        """
        async with self._one_alone:
            self._nobody_alone.clear()
            try:
                async with asyncio.timeout(patience_s):
                    await self._nobody.wait()
                yield
            finally:
                self._nobody_alone.set()
