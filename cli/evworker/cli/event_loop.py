"""The event loop of verbs that run for long: uvloop's where that is installed.

With the fast lane it saves little of what a message costs a busy worker, and half of what it costs
one that is mostly idle (docs/benchmarks.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_for_long(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on the best loop that there is."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    # Not within the `except`: each error of a handler would be told as one that came of that.
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
