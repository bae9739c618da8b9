"""Sending many events: some hundred confirms awaited at once, at a rate, with a bar to watch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from evworker.broker import (
    BrokerError,
    ConnectionLostError,
    Envelope,
    HeadersError,
    MessageTooLargeError,
    Publisher,
)
from evworker.broker.pace import Pace
from evworker.cli.failures import say

if TYPE_CHECKING:
    from rich.progress import Progress

IN_FLIGHT = 500
"""How many publishes may await their confirms: what bounds the memory of an endless pipe."""

_DRAWN_EVERY = 64


class Window:
    """Publishes envelopes, up to IN_FLIGHT at once, and `rate` a second if given.

    The first failure of the broker ends it: `publish` and `drained` raise it. What the broker can't
    take because of the event itself goes to `refuse`, with the number it was published under.
    """

    def __init__(
        self,
        publisher: Publisher,
        *,
        priority: int | None,
        rate: float | None,
        refuse: Callable[[int, Exception], None],
    ) -> None:
        self.published = 0
        self.first_unconfirmed: int | None = None
        self._publisher = publisher
        self._priority = priority
        self._pace = Pace(rate)
        self._refuse = refuse
        self._free = asyncio.Semaphore(IN_FLIGHT)
        self._running: set[asyncio.Task[None]] = set()
        self._failure: BrokerError | None = None

    async def publish(self, number: int, envelope: Envelope) -> None:
        """Returns as soon as there is room for the next one."""
        await self._pace.wait()
        await self._free.acquire()
        if self._failure is not None:
            raise self._failure
        task = asyncio.create_task(self._publish(number, envelope))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def drained(self) -> None:
        """Await all confirms that are still out."""
        await asyncio.gather(*self._running)
        if self._failure is not None:
            raise self._failure

    async def _publish(self, number: int, envelope: Envelope) -> None:
        try:
            try:
                await self._publisher.publish_envelope(envelope, priority=self._priority)
            except ConnectionLostError:
                # Safe with the same id; the publisher waits for the connection to come back.
                await self._publisher.publish_envelope(envelope, priority=self._priority)
            self.published += 1
        except (HeadersError, MessageTooLargeError) as error:
            self._refuse(number, error)
        except BrokerError as error:
            self._failure = self._failure or error
            self.first_unconfirmed = min(number, self.first_unconfirmed or number)
        finally:
            self._free.release()


class Bar:
    """A progress bar on stderr where that is a terminal; nothing anywhere else.

    `total` is in whatever `advance` counts; None when nobody knows.
    """

    def __init__(
        self, total: int | None, *, doing: str = "publishing", things: str = "events"
    ) -> None:
        self._total = total
        self._doing = doing
        self._shown = 0
        self._progress = _rich_progress(things) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._task = self._progress.add_task(self._doing, total=self._total, published=0)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, by: int, published: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, advance=by, published=published)

    def at(self, done: int) -> None:
        """How far it is; may be called for each single thing, for it is not drawn as often."""
        if done - self._shown >= _DRAWN_EVERY or done == self._total:
            self.advance(done - self._shown, done)
            self._shown = done

    def say(self, text: str) -> None:
        """A line on stderr, above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)


def _rich_progress(things: str) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[published]:,} " + things),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
