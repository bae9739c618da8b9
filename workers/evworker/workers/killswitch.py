"""The kill switch: stop taking messages while a dependency is down, and dead-letter none for it.

::

             enough failures in the window              pause over
    closed ───────────────────────────────► open ───────────────────► probing
       ▲                                      ▲                          │
       └────────── an attempt succeeded ──────┼──────────────────────────┤
                                              └── it failed again ───────┘

Pure: it is told what happened and when, and says in which state it is. The feed of the queue acts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from evworker.broker import ConsumerError, Duration, parse_duration
from evworker.workers.retry import STEERING, causes_in

State = Literal["closed", "open", "probing"]


@dataclass(frozen=True, slots=True, init=False)
class KillSwitch:
    """When a consumer's queue is paused, and for how long.

    It opens when at least `failures` attempts failed with an error of `on` within `window`,
    and these were at least `share` of all attempts in it. Attempts that fail so while it is open
    cost no attempt of their budget. After `pause` one message at a time is tried, and a pause made
    after each that fails, until one succeeds.

    What a handler raises to steer (``Discard``, ``DeadLetter``, ``RetryAfter``) matches only where
    `on` names it, and not by being an Exception. Of a group of errors one has to match.

    >>> KillSwitch(ConnectionError, TimeoutError, failures=5, pause="2s").pause_s
    2.0
    """

    on: tuple[type[BaseException], ...]
    failures: int
    share: float
    window_s: float
    pause_s: float

    def __init__(
        self,
        *on: type[BaseException],
        failures: int = 10,
        share: float = 0.8,
        window: Duration = "30s",
        pause: Duration = "5s",
    ) -> None:
        """Raises ConsumerError or DurationError for settings that can't work."""
        if failures < 1 or not 0 < share <= 1:
            raise ConsumerError(
                f"KillSwitch(failures={failures}, share={share}): failures must be 1 or more, "
                "share above 0 and at most 1"
            )
        object.__setattr__(self, "on", on or (Exception,))
        object.__setattr__(self, "failures", failures)
        object.__setattr__(self, "share", share)
        object.__setattr__(self, "window_s", parse_duration(window))
        object.__setattr__(self, "pause_s", parse_duration(pause))

    def matches(self, error: BaseException) -> bool:
        """Whether this error says that a dependency is down."""
        return any(
            isinstance(cause, kind)
            and (not isinstance(cause, STEERING) or issubclass(kind, STEERING))
            for cause in causes_in(error)
            for kind in self.on
        )


DEFAULT_KILL_SWITCH = KillSwitch(ConnectionError)


_SPANS = 100  # of a window


@dataclass(slots=True)
class _Span:
    began_at: float
    attempts: int = 0
    failures: int = 0


@dataclass(slots=True)
class SwitchState:
    """One kill switch at work. `now` is any clock that only goes forward, in seconds."""

    settings: KillSwitch
    state: State = "closed"
    opened_at: float = 0.0
    _spans: deque[_Span] = field(default_factory=deque)
    """The attempts of the window, by when they were made; a fast consumer makes millions."""
    _span_ends_at: float = 0.0

    def succeeded(self, now: float) -> bool:
        """An attempt succeeded; True when that closed the switch."""
        if self.state == "closed":
            self._remember(now, failed=False)
            return False
        self.state = "closed"
        self._spans.clear()
        return True

    def failed(self, now: float) -> bool:
        """An attempt failed with a matching error; True when that opened the switch."""
        if self.state == "closed":
            self._remember(now, failed=True)
            attempts = sum(span.attempts for span in self._spans)
            failures = sum(span.failures for span in self._spans)
            if failures < self.settings.failures or failures < self.settings.share * attempts:
                return False
        elif self.state == "open":
            return False
        self.state, self.opened_at = "open", now
        return True

    def failed_otherwise(self, now: float) -> None:
        """An attempt failed with another error: it says nothing of a dependency, but counts."""
        if self.state == "closed":
            self._remember(now, failed=False)

    def probe_due_s(self, now: float) -> float:
        """How long the pause still lasts, in seconds."""
        return max(0.0, self.opened_at + self.settings.pause_s - now)

    def probe(self) -> None:
        """The pause is over; one that another probe has closed meanwhile stays closed."""
        if self.state == "open":
            self.state = "probing"

    def _remember(self, now: float, *, failed: bool) -> None:
        spans = self._spans
        if not spans or now > self._span_ends_at:
            spans.append(_Span(now))
            window_s = self.settings.window_s
            self._span_ends_at = now + window_s / _SPANS
            while spans[0].began_at < now - window_s:
                spans.popleft()
        span = spans[-1]
        span.attempts += 1
        span.failures += failed
