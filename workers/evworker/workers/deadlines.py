"""The deadlines of a consumer's attempts, with one timer for all of them.

asyncio.timeout sets a timer for each, at the cost of handling a small message. But the attempts of
a consumer all have the same time, so they are due in the order in which they began: one timer does,
for the first of them.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Deadlines:
    """Has those time out that take longer than `timeout_s` seconds; with None, none.

    `late` makes the error that they end with.
    """

    def __init__(
        self,
        timeout_s: float | None,
        loop: asyncio.AbstractEventLoop,
        late: Callable[[], TimeoutError],
    ) -> None:
        self.loop = loop
        self.late = late
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._running: dict[Deadline, None] = {}
        """In the order in which they are due."""
        self._timer: asyncio.TimerHandle | None = None

    def of(self, started_at: float) -> Deadline:
        """What is to be entered by who began at `started_at`, and none of those before it later."""
        return Deadline(self, started_at + self._timeout_s)

    def close(self) -> None:
        """Have none time out any more."""
        self._running.clear()
        if self._timer is not None:
            self._timer.cancel()

    def begin(self, deadline: Deadline) -> None:
        """It is to be kept from now on."""
        if deadline.due_at < math.inf:
            self._running[deadline] = None
            if deadline.due_at <= self.loop.time():
                # A timer would come behind what waits for no more than its next turn.
                self.loop.call_soon(self._expire)
            elif self._timer is None:
                self._timer = self.loop.call_at(deadline.due_at, self._expire)

    def end(self, deadline: Deadline) -> None:
        """It need not be kept any more."""
        self._running.pop(deadline, None)

    def _expire(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self.loop.time()
        try:
            while self._running:
                deadline = next(iter(self._running))
                if deadline.due_at > now:  # as a rule: who the timer was for has long ended
                    break
                del self._running[deadline]
                deadline.expire()
        finally:  # what a handler awaits may raise when it is cancelled
            if self._running:
                self._timer = self.loop.call_at(next(iter(self._running)).due_at, self._expire)


class Deadline:
    """One attempt's: a context manager that cancels its task, and raises that it was late.

    A cancellation by somebody else stays one, as with asyncio.timeout.
    """

    __slots__ = ("_cancelling", "_deadlines", "_has_expired", "_task", "due_at")

    def __init__(self, deadlines: Deadlines, due_at: float) -> None:
        self.due_at = due_at
        self._has_expired = False
        self._deadlines = deadlines

    def expire(self) -> None:
        """The time is over."""
        self._has_expired = True
        self._task.cancel()

    def __enter__(self) -> None:
        task = asyncio.current_task(self._deadlines.loop)
        self._task = cast("asyncio.Task[Any]", task)  # attempts run in tasks
        self._cancelling = self._task.cancelling()
        self._deadlines.begin(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadlines.end(self)
        if not self._has_expired:
            return
        is_cancelled_by_others = self._task.uncancel() > self._cancelling
        if isinstance(error, TimeoutError) or (  # which somebody has made of the cancellation
            isinstance(error, asyncio.CancelledError) and not is_cancelled_by_others
        ):
            # Where the handler was then, and what it was about to mend, is what there is to tell.
            late = self._deadlines.late().with_traceback(trace)
            raise late from error.__cause__ if error.__suppress_context__ else error.__context__
