"""What became of a delivery: a value, decided at one place and settled at one other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evworker.broker import Envelope, Failure


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The inbox has it: this consumer has applied the event before."""


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt failed, and there is to be another one after `delay_s` seconds."""

    delay_s: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """There is to be no further attempt."""

    failure: Failure
    envelope: Envelope | None = None
    """The message, where it could be read and no handler has seen it."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The attempt did not end, by no fault of the message: the worker stopped."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """The policy or the handler says that this message need not be handled."""

    why: str


@dataclass(frozen=True, slots=True)
class Paused:
    """A dependency is down: the queue pauses, and this one goes to its end, as if never tried."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The message came back unsettled so often that it may kill its workers: it is to run alone."""

    returns: int | None
    """How often, where the broker counts."""


Outcome = (
    Succeeded | Duplicate | Retried | DeadLettered | HandedBack | Discarded | Paused | Quarantined
)


@dataclass(slots=True)
class Counts:
    """How many deliveries ended how, since the worker was made."""

    handled: int = 0
    duplicates: int = 0
    """Acked because the inbox had them; not among the handled."""
    retried: int = 0
    handed_back: int = 0
    discarded: int = 0
    quarantined: int = 0
    """Put aside to run alone; each is counted again where it ends."""
    dead_lettered: dict[str, int] = field(default_factory=dict)
    """By reason."""

    def dead_letter(self, reason: str) -> None:
        """Count one more."""
        self.dead_lettered[reason] = self.dead_lettered.get(reason, 0) + 1

    @property
    def settled(self) -> int:
        """All that ended here: not those handed back or quarantined."""
        ended = self.handled + self.duplicates + self.retried + self.discarded
        return ended + sum(self.dead_lettered.values())
