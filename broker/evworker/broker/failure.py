"""What went wrong with a message, as its headers carry it to its retries and its dead letter."""

from __future__ import annotations

import socket
import traceback as traces
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Self

from evworker.broker.frames import frame_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from pamqp.common import FieldTable, FieldValue

MESSAGE_LIMIT_BYTES = 4 * 1024
TRACEBACK_LIMIT_BYTES = 8 * 1024

Reason = Literal["failed", "given-up", "undecodable", "invalid", "unwanted", "crashed", "unknown"]
"""Why a message is a dead letter.

- ``failed``: every attempt of its policy failed
- ``given-up``: its error is one that the policy does not retry
- ``undecodable``: its bytes can't be read as an event
- ``invalid``: it is not what its event type promises
- ``unwanted``: no consumer of the queue wants its topic
- ``crashed``: it came back so often without being settled that it must kill its workers
- ``unknown``: someone other than evworker put it there
"""

_HOST = socket.gethostname()

ATTEMPT_HEADER = "evw-attempt"

_ABSURD_ATTEMPTS = 2**31  # a stranger's; one more of them might not be encodable

# The broker's word for "it came back too often", in the newest entry of x-death.
_BROKERS_REASONS: dict[str, Reason] = {"delivery_limit": "crashed"}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, or the reason why there was none."""

    reason: Reason
    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    attempts: int = 0
    """How many attempts have failed, this one included."""
    first_failed_at: datetime | None = None
    failed_at: datetime | None = None
    consumer: str | None = None
    host: str | None = None
    origin_exchange: str | None = None
    origin_routing_key: str | None = None
    frame: str | None = None
    """Where in the user's code it was raised, as ``module:function``."""
    error: BaseException | None = field(default=None, compare=False, repr=False)
    """The error itself, where it was raised in this process; it is in no header."""

    @classmethod
    def now(
        cls,
        reason: Reason,
        error: BaseException,
        *,
        attempts: int,
        consumer: str | None,
        earlier: Failure,
        exchange: str,
        routing_key: str,
    ) -> Self:
        """The failure that just happened; `earlier` is what the message's headers told so far.

        `exchange` and `routing_key` are those of this delivery, which count at the first failure.
        """
        failed_at = datetime.now(UTC)
        first = earlier.origin_routing_key is None
        return cls(
            reason=reason,
            error_type=_name_of(type(error)),
            error_message=message_of(error),
            traceback=_trace_of(error),
            attempts=attempts,
            first_failed_at=earlier.first_failed_at or failed_at,
            failed_at=failed_at,
            consumer=consumer,
            host=_HOST,
            origin_exchange=exchange if first else earlier.origin_exchange,
            origin_routing_key=routing_key if first else earlier.origin_routing_key,
            frame=frame_of(error),
            error=error,
        )

    def to_headers(self) -> FieldTable:
        """The ``evw-`` headers; scalars only, within the bounds of this module."""
        headers: FieldTable = {
            "evw-reason": self.reason,
            ATTEMPT_HEADER: self.attempts,
            "evw-error-type": self.error_type,
            "evw-error": self.error_message,
            "evw-traceback": self.traceback,
            "evw-first-failed-at": _written(self.first_failed_at),
            "evw-failed-at": _written(self.failed_at),
            "evw-consumer": self.consumer,
            "evw-host": self.host,
            "evw-origin-exchange": self.origin_exchange,
            "evw-origin-routing-key": self.origin_routing_key,
            "evw-frame": self.frame,
        }
        return {name: value for name, value in headers.items() if value is not None}

    @classmethod
    def from_headers(cls, headers: Mapping[str, FieldValue]) -> Self:
        """Read back; a header that someone else has spoilt counts as absent."""
        # A letter that failed before and then killed its worker was moved by the broker, last.
        death = _newest_death(headers)
        reason = _BROKERS_REASONS.get(str(death.get("reason")), headers.get("evw-reason"))
        died_at = death.get("time")
        crash = death if reason == "crashed" else {}
        return cls(
            reason=reason if reason in _REASONS else "unknown",  # type: ignore[arg-type]
            error_type=_text(headers, "evw-error-type"),
            error_message=_text(headers, "evw-error"),
            traceback=_text(headers, "evw-traceback"),
            attempts=failed_attempts(headers.get(ATTEMPT_HEADER)),
            first_failed_at=_read(headers, "evw-first-failed-at"),
            failed_at=died_at if isinstance(died_at, datetime) else _read(headers, "evw-failed-at"),
            consumer=_text(headers, "evw-consumer"),
            host=_text(headers, "evw-host"),
            origin_exchange=_text(headers, "evw-origin-exchange") or _text(crash, "exchange"),
            origin_routing_key=_text(headers, "evw-origin-routing-key") or _routing_key_of(crash),
            frame=_text(headers, "evw-frame"),
        )


def failed_attempts(attempts: FieldValue) -> int:
    """How many attempts of a message have failed so far, by its ATTEMPT_HEADER, if it has one."""
    return attempts if isinstance(attempts, int) and 0 < attempts < _ABSURD_ATTEMPTS else 0


def _newest_death(headers: Mapping[str, FieldValue]) -> Mapping[str, FieldValue]:
    # https://www.rabbitmq.com/docs/dlx#effects: a list of tables, the newest first.
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    return newest if isinstance(newest, dict) else {}


def _routing_key_of(death: Mapping[str, FieldValue]) -> str | None:
    keys = death.get("routing-keys")
    first = keys[0] if isinstance(keys, list) and keys else None
    return first if isinstance(first, str) else None


FAILURE_HEADERS = frozenset(
    (
        "evw-reason",
        ATTEMPT_HEADER,
        "evw-error-type",
        "evw-error",
        "evw-traceback",
        "evw-first-failed-at",
        "evw-failed-at",
        "evw-consumer",
        "evw-host",
        "evw-origin-exchange",
        "evw-origin-routing-key",
        "evw-frame",
    )
)
"""What `Failure.to_headers` writes, each anew at every failure."""

_REASONS = Reason.__args__  # type: ignore[attr-defined]


def _name_of(kind: type) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def message_of(error: BaseException) -> str:
    """The error's own words, bounded; never raises, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except Exception as failing:  # noqa: BLE001 - a user's __str__ can do anything
        text = f"<its message can't be shown: {_name_of(type(failing))}>"
    return _clipped(text, MESSAGE_LIMIT_BYTES)


def _trace_of(error: BaseException) -> str | None:
    if error.__traceback__ is None:
        return None
    try:
        lines = traces.format_exception(type(error), error, _users_part(error.__traceback__))
    except Exception as failing:  # noqa: BLE001 - as above
        lines = [f"<its traceback can't be shown: {_name_of(type(failing))}>"]
    # The end tells most: the frames nearest to the error, and the error.
    return _tail("".join(lines), TRACEBACK_LIMIT_BYTES)


def _users_part(trace: TracebackType) -> TracebackType:
    # The frames of the worker's own machinery come first, are always the same, and tell nothing.
    frame: TracebackType | None = trace
    while frame and frame.tb_frame.f_globals.get("__name__", "").startswith("evworker.workers."):
        frame = frame.tb_next
    return frame or trace


def _clipped(text: str, limit: int) -> str:
    if text.isascii() and len(text) <= limit:
        return text
    data = text.encode("utf-8", "backslashreplace")
    return data[:limit].decode("utf-8", "ignore")


def _tail(text: str, limit: int) -> str:
    data = text.encode("utf-8", "backslashreplace")
    return data[-limit:].decode("utf-8", "ignore")


def _written(time: datetime | None) -> str | None:
    return time.isoformat(timespec="milliseconds") if time else None


def _text(headers: Mapping[str, FieldValue], name: str) -> str | None:
    value = headers.get(name)
    # Bounded again, since anyone can write it: what is read goes onto the next copy.
    return _clipped(value, TRACEBACK_LIMIT_BYTES) if isinstance(value, str) else None


def _read(headers: Mapping[str, FieldValue], name: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(headers[name]))
    except (KeyError, ValueError):
        return None
    # Anyone can write it, and one without a zone can't be compared with any other.
    return time if time.tzinfo else time.replace(tzinfo=UTC)
