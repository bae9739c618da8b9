"""Wait for what a test expects to become true, and for no longer."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

POLL_INTERVAL_S = 0.02


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], message: str = "", *, timeout_s: float = 30.0
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], message: str = "", *, timeout_s: float = 30.0
) -> T: ...
async def eventually(
    condition: Callable[[], Any], message: str = "", *, timeout_s: float = 30.0
) -> Any:
    """The first truthy result of `condition`, a plain or an async function without arguments.

    Asked every 20 ms, at least once. Fails the test after `timeout_s` seconds with `message` and
    the last result; what the condition raises goes through, except an AssertionError, which
    counts as "not yet".
    """
    deadline = time.monotonic() + timeout_s
    while True:
        last: object
        try:
            result = condition()
            value = await result if inspect.isawaitable(result) else result
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        if time.monotonic() >= deadline:
            expected = message or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {timeout_s:g} s: {expected}; last seen: {last!r}")
        await asyncio.sleep(POLL_INTERVAL_S)
