"""Running a coroutine up to its first suspension, and awaiting it only if there is one."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator, Iterator
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
        return _Suspended(call, call.send(None))
    except StopIteration:
        return None
    except GeneratorExit as error:
        raise RuntimeError(_RAISED) from error


_RAISED = "coroutine raised GeneratorExit"


class _Suspended(Iterator[object]):
    """`await call` from its first suspension on, when it has yielded `first`.

    Only a task can await it: those send None, and so come by way of `__next__`.
    """

    __slots__ = ("_call", "_first", "_is_told")

    def __init__(self, call: Coroutine[Any, Any, None], first: object) -> None:
        self._call = call
        self._first = first
        self._is_told = False

    def __await__(self) -> Generator[Any, Any, None]:
        return self  # type: ignore[return-value]  # it has what a task calls of one

    def __next__(self) -> object:
        if not self._is_told:
            self._is_told = True
            return self._first
        try:
            return self._call.send(None)
        except GeneratorExit as error:
            raise RuntimeError(_RAISED) from error

    def throw(self, *error: Any) -> object:  # whatever the awaiting task throws
        try:
            return self._call.throw(*error)
        except GeneratorExit as raised:
            raise RuntimeError(_RAISED) from raised

    def close(self) -> None:
        self._call.close()
