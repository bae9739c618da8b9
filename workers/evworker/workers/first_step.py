"""Running a coroutine up to its first suspension, and awaiting it only if there is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any


def first_step(call: Awaitable[None]) -> Awaitable[None] | None:
    """Begin it at once, in the running task; what is left to await, or None if it has returned.

    It raises what the coroutine raises, but for a GeneratorExit, which would tell whoever awaits it
    that he himself is being closed: that is a RuntimeError, as Python makes one of a StopIteration.
    Whatever is left must be awaited before anything else is.
    """
    if not isinstance(call, CoroutineType):
        return call
    try:
        return _Suspended(call, _step(call.send, None))
    except StopIteration:
        return None


def _step(step: Callable[..., object], *told: Any) -> object:  # whatever the awaiting task tells
    try:
        return step(*told)
    except GeneratorExit as error:
        raise RuntimeError("coroutine raised GeneratorExit") from error


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
            return _step(self._call.send, value)
        self._is_told = True
        return self._first

    def throw(self, *error: Any) -> object:  # whatever the awaiting task throws
        return _step(self._call.throw, *error)

    def close(self) -> None:
        self._call.close()
