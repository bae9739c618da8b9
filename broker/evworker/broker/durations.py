"""Durations as people write them, and as queue names carry them."""

from __future__ import annotations

import re
from datetime import timedelta

from evworker.broker.errors import DurationError

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")

LONGEST_S = 49 * 86_400.0
"""49 days: RabbitMQ's message TTL is an unsigned 32-bit number of milliseconds
(https://www.rabbitmq.com/docs/ttl)."""

Duration = str | float | timedelta
"""``"500ms"``, ``"5s"``, ``"1.5h"``, a number of seconds, or a timedelta."""


def parse_duration(duration: Duration) -> float:
    """The duration in seconds.

    >>> parse_duration("500ms"), parse_duration("5m"), parse_duration(2)
    (0.5, 300.0, 2.0)

    Raises DurationError when it can't be read, is not positive, or is longer than 49 days.
    """
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        written = _WRITTEN.fullmatch(duration.strip())
        if written is None:
            raise DurationError(
                f"can't read the duration {duration!r}; write for example '500ms', '5s' or '2m'"
            )
        seconds = float(written[1]) * _UNITS_MS[written[2]] / 1_000
    else:
        seconds = float(min(duration, 2 * LONGEST_S))  # no integer is too long for a float then
    if not 0.001 <= seconds <= LONGEST_S:
        raise DurationError(f"the duration {duration!r} must be between 1 millisecond and 49 days")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest exact way to write it, rounded to a millisecond.

    >>> format_duration(300.0), format_duration(90), format_duration(0.25)
    ('5m', '90s', '250ms')
    """
    milliseconds = round(seconds * 1_000)
    unit = "ms"
    for name, size in _UNITS_MS.items():
        if milliseconds % size == 0:
            unit = name
    return f"{milliseconds // _UNITS_MS[unit]}{unit}"
