"""What a test is shown of a worker: the events that were published, and how each delivery ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from evworker.broker import ConfigurationError, Envelope, Event, format_duration
from evworker.workers.consumer import AnyEvent, Consumer

E = TypeVar("E", bound=Event)

End = Literal[
    "handled", "duplicate", "retried", "discarded", "dead-lettered", "handed back", "crashed"
]


class Record(Protocol):
    """What both kinds have in common."""

    @property
    def envelope(self) -> Envelope | None: ...
    @property
    def event(self) -> Event | AnyEvent | None: ...


R = TypeVar("R", bound=Record)


class Records(list[R], Generic[R]):
    """Records in the order in which they were made: a list, with ways to ask for some of them."""

    def __init__(self, records: Iterable[R], consumers: Sequence[Consumer]) -> None:
        """`consumers` are those of the worker."""
        super().__init__(records)
        self._consumers = consumers

    @property
    def events(self) -> list[Event | AnyEvent | None]:
        """The event of each."""
        return [record.event for record in self]

    def of(self, event_type: type[E]) -> list[E]:
        """The events of this type's topic, decoded as it.

        Raises InvalidEventError for one that is not what the type promises.
        """
        topic = event_type.__topic__
        envelopes = (record.envelope for record in self)
        return [found.decode(event_type) for found in envelopes if found and found.topic == topic]

    def by(self, consumer: str | Callable[..., Any]) -> Records[R]:
        """Those of one consumer, told by its name or by its handler.

        Of published events: those that its handler caused. Raises ConfigurationError for what is
        no consumer of the worker, of which nothing would ever be found.
        """
        names = [one.name for one in self._consumers if consumer in (one.name, one.handler)]
        if not names:
            known = ", ".join(one.name for one in self._consumers)
            name = getattr(consumer, "__qualname__", consumer)
            raise ConfigurationError(f"this worker has no consumer {name!r}; it has {known}")
        found = (record for record in self if _consumer_of(record) in names)
        return Records(found, self._consumers)


@dataclass(eq=False)
class EventRecord:
    """An event that was published, by whomever."""

    envelope: Envelope
    event: Event | AnyEvent
    cause: DeliveryRecord | None
    """The delivery whose handler published it; None for the test, or whoever else it was."""
    has_consumer: bool
    """Whether any consumer of the worker wants it."""

    @property
    def topic(self) -> str:
        return self.envelope.topic

    def __repr__(self) -> str:
        by = f" by {self.cause.consumer}" if self.cause else ""
        return f"<{self.topic} published{by}: {said(self.event)}>"


@dataclass(eq=False)
class DeliveryRecord:
    """One arrival of one event at one consumer, and how it ended."""

    consumer: str | None
    """The consumer's name; None where no consumer of the queue wants it, or it can't be read."""
    queue: str
    envelope: Envelope | None
    """None for what can't be read."""
    event: Event | AnyEvent | None
    """None for what is not what its type promises."""
    attempt: int
    """Which attempt it was, from 1; 0 where there was none."""
    declared: Consumer | None = None
    end: End | None = None
    """None while it is at work."""
    error: BaseException | None = None
    """What the handler raised, or why the event never got to it."""
    reason: str | None = None
    """Of a dead letter: failed, given-up, undecodable, invalid, unwanted or crashed."""
    delay_s: float | None = None
    """Until the next attempt, in seconds, as the policy has it."""
    why: str = ""
    """Of what was discarded or handed back."""

    def __repr__(self) -> str:
        return f"<{self.consumer or self.queue}: {self.what} {self.outcome}>"

    @property
    def what(self) -> str:
        """The event, in words."""
        if self.envelope is None:
            return "what can't be read"
        if isinstance(self.event, Event):
            return said(self.event)
        return f"{self.envelope.topic} {said(self.event) if self.event else self.envelope.data!r}"

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        match self.end:
            case None:
                return f"attempt {self.attempt} is at work"
            case "retried":
                again = format_duration(self.delay_s or 0.0)
                return f"attempt {self.attempt} failed, again in {again}: {told(self.error)}"
            case "dead-lettered":
                after = f" at attempt {self.attempt}" if self.attempt else ""
                return f"dead-lettered, {self.reason}{after}: {told(self.error)}"
            case "handled":
                return f"handled at attempt {self.attempt}" if self.attempt > 1 else "handled"
            case "crashed":
                return self.why
            case _:
                return f"{self.end}: {self.why}" if self.why else str(self.end)


def said(event: Event | AnyEvent, *, ignore: Collection[str] = ()) -> str:
    """The event on one line, without the fields to `ignore`; only its data, if it has no type."""

    def without(fields: Mapping[str, object], topic: str) -> dict[str, object]:
        return {
            name: value
            for name, value in fields.items()
            if name not in ignore and f"{topic}.{name}" not in ignore
        }

    if isinstance(event, AnyEvent):
        data = event.data
        return repr(without(data, event.topic) if isinstance(data, dict) else data)
    every = msgspec.structs.asdict(event)
    fields = without(every, event.__topic__)
    if len(fields) == len(every):
        return repr(event)
    return f"{type(event).__name__}({', '.join(f'{name}={fields[name]!r}' for name in fields)})"


def told(error: BaseException | None) -> str:
    """An error on one line."""
    if error is None:
        return "unknown"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _consumer_of(record: Record) -> str | None:
    delivery = record.cause if isinstance(record, EventRecord) else record
    return delivery.consumer if isinstance(delivery, DeliveryRecord) else None
