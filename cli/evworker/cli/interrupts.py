"""Ctrl-C and SIGTERM: a verb is told to end, cleans up, and says nothing more."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from evworker.cli.failures import INTERRUPTED

T = TypeVar("T")

# One Ctrl-C may come twice, for the process and for its group; a person's second takes longer.
_ECHO_S = 0.3


def run(verb: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` for verbs: an interrupt cancels the verb once, another one ends the process.

    Raises click.Abort when it was interrupted.
    """
    try:
        return asyncio.run(_interruptible(verb))
    except asyncio.CancelledError:
        raise click.Abort from None


async def _interruptible(verb: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(verb)
    interrupted_at: float | None = None

    def interrupt() -> None:
        nonlocal interrupted_at
        now = loop.time()
        if interrupted_at is None:
            interrupted_at = now
            working.cancel()
        elif now - interrupted_at > _ECHO_S:
            os._exit(INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    return await working
