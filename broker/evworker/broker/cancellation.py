"""Cancelling tasks, for good.

`asyncio.wait_for` of Python 3.11 can swallow a cancellation that meets the answer it waits for
(https://github.com/python/cpython/issues/86296), and aiormq waits with it. A task that was told to
stop may therefore go on as if nothing had been said.
"""

from __future__ import annotations

import asyncio
from typing import Any

_ASK_AGAIN_S = 0.5


def is_cancelled(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    """Whether someone has asked the current task to stop; `loop` saves looking for it."""
    task = asyncio.current_task(loop)
    return task is not None and task.cancelling() > 0


def raise_if_cancelled() -> None:
    """Obey a cancellation that was swallowed; to be called after whatever may have done so."""
    if is_cancelled():
        raise asyncio.CancelledError


def forgive_cancellation() -> None:
    """Let the current task go on: it was its own handler that cancelled it."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


async def cancel_all(*tasks: asyncio.Future[Any], timeout_s: float | None = None) -> int:
    """Cancel the tasks, again and again, until they have ended; their results are dropped.

    Returns how many still run after `timeout_s` seconds; without one it waits for all.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    pending = {task for task in tasks if not task.done()}
    while pending and (deadline is None or loop.time() < deadline):
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_ASK_AGAIN_S)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # seen, so that asyncio does not complain
    return len(pending)
