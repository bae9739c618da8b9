"""Running a coroutine up to its first suspension, and awaiting it only if there is one."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from types import CoroutineType
from typing import Any


def first_step(call: Awaitable[None]) -> Awaitable[None] | None:
    """Begin it at once, in the running task; what is left to await, or None if it has returned.

    It raises what the coroutine raises. Whatever is left must be awaited before anything else is.
    """
    if not isinstance(call, CoroutineType):
        return call
    try:
        return _Suspended(call, call.send(None))
    except StopIteration:
        return None


class _Suspended(Generator[Any, Any, None]):
    """`await call` from its first suspension on, when it has yielded `first`."""

    def __init__(self, call: Coroutine[Any, Any, None], first: object) -> None:
        self._call = call
        self._first = first
        self._is_told = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self

    def send(self, value: object) -> object:
        if self._is_told:
            return self._call.send(value)
        self._is_told = True
        return self._first

    def throw(self, *error: Any) -> object:  # whatever the awaiting task throws
        return self._call.throw(*error)

    def close(self) -> None:
        self._call.close()
