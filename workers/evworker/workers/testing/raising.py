"""A handler's own error, as it is raised in the test that caused it."""

from __future__ import annotations

from types import TracebackType

from evworker.workers.testing.records import DeliveryRecord
from evworker.workers.testing.watching import watched_plugin

_WATCHING = watched_plugin.__module__


class NotSettledError(AssertionError):
    """Something was still under way when the time was over; the message tells what."""


def raisable(record: DeliveryRecord) -> Exception:
    """The handler's own error, to be raised in a test; a SystemExit would end the test run."""
    error = record.error
    if not isinstance(error, Exception):
        exited = NotSettledError(f"{record!r}")
        exited.__cause__ = error
        return exited
    error.add_note(f"{record!r}")
    return error.with_traceback(_users_part(error.__traceback__))


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """The trace from the first frame that is neither the worker's nor the kit's."""
    frames: list[TracebackType] = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    modules = [frame.tb_frame.f_globals.get("__name__", "") for frame in frames]
    watched = modules.index(_WATCHING) if _WATCHING in modules else -1
    for frame, module in zip(frames[watched + 1 :], modules[watched + 1 :], strict=True):
        if not module.startswith("evworker."):
            return frame
    return frames[0] if frames else None
