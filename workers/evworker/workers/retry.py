"""When a failed attempt is tried again: a pure policy, and what a handler steers it by."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from evworker.broker import ConsumerError, Duration, EvworkerError, parse_duration
from evworker.broker.durations import LONGEST_S

# Every delay is a queue of its own on the broker, so a wait that a handler asks for is rounded up
# to one of these: never shorter than asked, and never a new queue for each number of seconds.
_SECONDS = (1, 2, 5, 10, 15, 30)
_STEPS_S = (
    *_SECONDS,
    *(60 * minutes for minutes in _SECONDS),
    *(3_600 * hours for hours in (1, 2, 3, 6, 12)),
)
_DAY_S = 86_400

Errors = type[BaseException] | Iterable[type[BaseException]]


def _error_types(name: str, errors: Errors) -> tuple[type[BaseException], ...]:
    types = (errors,) if isinstance(errors, type) else tuple(errors)
    for error in types:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise ConsumerError(f"Retry({name}={error!r}) is no exception type")
    return types


@dataclass(frozen=True, slots=True, init=False)
class Retry:
    """A delay for each further attempt; after the last one the message is a dead letter.

    ``Retry("1s", "5s", "30s")`` is four attempts in all, ``Retry()`` only one.

    - `give_up_on`: errors, and their subclasses, that are not worth another attempt.
    - `discard_on`: errors after which the message is not even worth a dead letter.
    - `within`: no further attempt begins later than this after the first failure.
    - `jitter`: lengthens each delay by up to this share of it, so that what failed together does
      not come back together. A delay is a queue on the broker, so that there are three lengths.

    >>> Retry("1s", "5m").decide(ValueError(), failed_attempts=2).delay_s
    300.0
    """

    delays_s: tuple[float, ...]
    give_up_on: tuple[type[BaseException], ...]
    discard_on: tuple[type[BaseException], ...]
    within_s: float | None
    jitter: float

    def __init__(
        self,
        *delays: Duration,
        give_up_on: Errors = (),
        discard_on: Errors = (),
        within: Duration | None = None,
        jitter: float = 0.0,
    ) -> None:
        """Raises DurationError or ConsumerError for what can't be a delay or an error type."""
        if not 0 <= jitter <= 1:
            raise ConsumerError(f"Retry(jitter={jitter}) must be 0 to 1, a share of the delay")
        object.__setattr__(self, "delays_s", tuple(parse_duration(delay) for delay in delays))
        object.__setattr__(self, "give_up_on", _error_types("give_up_on", give_up_on))
        object.__setattr__(self, "discard_on", _error_types("discard_on", discard_on))
        object.__setattr__(self, "within_s", None if within is None else parse_duration(within))
        object.__setattr__(self, "jitter", jitter)

    @property
    def waits_s(self) -> tuple[float, ...]:
        """Every delay that a message can really be given, jitter included, in seconds."""
        return tuple(sorted({wait for delay in self.delays_s for wait in self._spread(delay)}))

    @property
    def horizon_s(self) -> float:
        """How long after its first failure the last attempt may begin, in seconds.

        Waits that a handler asks for with RetryAfter are not in it.
        """
        total_s = sum(max(self._spread(delay)) for delay in self.delays_s)
        return total_s if self.within_s is None else min(total_s, self.within_s)

    def decide(
        self, error: BaseException, *, failed_attempts: int, failing_for_s: float = 0.0
    ) -> Decision:
        """What becomes of an attempt that ended in `error`.

        `failed_attempts` counts this one, `failing_for_s` is the time since the first that failed.
        Of a group, such as a TaskGroup raises, all errors must be ones to discard, and one suffices
        to give up; the longest wait that is asked for counts.
        """
        causes = causes_in(error)
        if isinstance(error, self.discard_on) or all(
            isinstance(cause, (Discard, *self.discard_on)) for cause in causes
        ):
            return Decision("discard")
        if any(isinstance(cause, (DeadLetter, *self.give_up_on)) for cause in (error, *causes)):
            return Decision("give-up")
        if failed_attempts > len(self.delays_s):
            return Decision("dead-letter")
        if asked_s := [cause.delay_s for cause in causes if isinstance(cause, RetryAfter)]:
            delay_s = max(asked_s)
        else:
            delay_s = random.choice(self._spread(self.delays_s[failed_attempts - 1]))
        if self.within_s is not None and failing_for_s + delay_s > self.within_s:
            return Decision("dead-letter")
        return Decision("retry", delay_s)

    def _spread(self, delay_s: float) -> tuple[float, ...]:
        if not self.jitter:
            return (delay_s,)
        longest_s = min(LONGEST_S, delay_s * (1 + self.jitter))
        return tuple(round(wait, 3) for wait in (delay_s, (delay_s + longest_s) / 2, longest_s))


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of a failed attempt; `delay_s` counts for a retry only."""

    what: Literal["retry", "dead-letter", "give-up", "discard"]
    delay_s: float = 0.0


def fixed(delay: Duration, attempts: int) -> tuple[float, ...]:
    """The same delay before each of so many further attempts: ``Retry(*fixed("10s", 6))``."""
    return (parse_duration(delay),) * attempts


def exponential(
    first: Duration, attempts: int, *, factor: float = 2.0, longest: Duration = "1h"
) -> tuple[float, ...]:
    """Delays that grow by `factor` from `first`, up to `longest`.

    >>> exponential("1s", 5, factor=3, longest="30s")
    (1.0, 3.0, 9.0, 27.0, 30.0)
    """
    first_s, longest_s = parse_duration(first), parse_duration(longest)
    return tuple(min(longest_s, round(first_s * factor**number, 3)) for number in range(attempts))


DEFAULT_RETRY = Retry("1s", "5s", "30s", "5m")


class RetryAfter(Exception):  # noqa: N818 - raised to ask for something, like StopIteration
    """Raised by a handler: this attempt failed, and the next one is worth while only after a time.

    ``raise RetryAfter(120)`` when a service answered "come back in two minutes". It counts as an
    attempt. The wait is in seconds (or a duration such as ``"2m"``), and is rounded up to the next
    of 1, 2, 5, 10, 15, 30 seconds or minutes, 1, 2, 3, 6, 12 hours, or whole days.
    """

    delay_s = 1.0  # for a subclass that forgets to call __init__

    def __init__(self, delay: Duration) -> None:
        """Raises DurationError for a delay that can't be read."""
        self.delay_s = _rounded_up(parse_duration(delay))
        super().__init__(f"asked for another attempt in {delay}")


class DeadLetter(Exception):  # noqa: N818 - asks for something, like StopIteration
    """Raised by a handler: no attempt will help, this message is a dead letter, and here is why."""


class Discard(Exception):  # noqa: N818 - asks for something, like StopIteration
    """Raised by a handler: this message need not be handled, and here is why; it is gone then."""


STEERING = (RetryAfter, DeadLetter, Discard)
"""What a handler raises to say what is to be done, and not that something broke."""


def causes_in(error: BaseException) -> tuple[BaseException, ...]:
    """The error, or those in it if it is a group, however deep."""
    if not isinstance(error, BaseExceptionGroup):
        return (error,)
    return tuple(cause for inner in error.exceptions for cause in causes_in(inner))


class HandlerTimeoutError(EvworkerError, TimeoutError):
    """A handler took longer than its consumer's timeout, and was cancelled."""


def _rounded_up(seconds: float) -> float:
    for step in _STEPS_S:
        if seconds <= step:
            return float(step)
    return float(-(-seconds // _DAY_S) * _DAY_S)
