"""The ledger of a test: what was published, each delivery and its end, and what is owed yet.

It is told by the tap of each event that the broker took, by a middleware of each attempt, and by
the settlement of each end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from evworker.broker import Envelope, Event, EventError, UndecodableError
from evworker.broker.delivery import Delivery
from evworker.broker.topics import matches
from evworker.workers.consumer import AnyEvent, Consumer
from evworker.workers.context import Context
from evworker.workers.outcome import (
    DeadLettered,
    Discarded,
    Duplicate,
    HandedBack,
    Outcome,
    Paused,
    Quarantined,
    Retried,
    Succeeded,
)
from evworker.workers.testing.records import DeliveryRecord, EventRecord


class Ledger:
    """What happened in one test, in order. `prefix` is before each queue's name on the broker."""

    def __init__(self, consumers: Iterable[Consumer], *, prefix: str) -> None:
        self.consumers = tuple(consumers)
        self.published: list[EventRecord] = []
        self.deliveries: list[DeliveryRecord] = []
        self.owed: Counter[tuple[str, str | None]] = Counter()
        """How often a queue was given an event that has not come to its end, by queue and id."""
        self.ends = 0
        self._prefix = prefix
        self._types = {
            event_type.__topic__: event_type
            for consumer in self.consumers
            for event_type in consumer.event_types
        }
        self.deliveries_of: defaultdict[str, list[DeliveryRecord]] = defaultdict(list)
        """The deliveries by the event's id."""
        self._known: set[str] = set()
        self._running: dict[Context, DeliveryRecord] = {}
        self._waited_s: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._extra: Counter[str] = Counter()
        self._untold: list[DeliveryRecord] = []

    # What comes

    def knows(self, event: Event) -> None:
        """Events of its topic are of its type, unless a consumer says otherwise."""
        self._types.setdefault(event.__topic__, type(event))

    def expect_extra(self, envelope: Envelope) -> None:
        """The event will be published once more than the test asked for."""
        self._extra[envelope.id] += 1

    def is_published(self, topic: str, envelope: Envelope | None) -> None:
        """The broker has taken it; without an envelope it can't be read."""
        wanting = [one for one in self.consumers if _is_bound(one, topic)]
        id = envelope.id if envelope else None
        self.owed.update({(consumer.queue, id) for consumer in wanting})
        if envelope is None:
            return
        if envelope.id in self._known and self._extra[envelope.id]:
            self._extra[envelope.id] -= 1
            return
        self._known.add(envelope.id)
        self.published.append(
            EventRecord(envelope, self._read(envelope), self._cause(envelope), bool(wanting))
        )

    def _cause(self, envelope: Envelope) -> DeliveryRecord | None:
        """The delivery whose handler it was: the last of the event that is named as its cause."""
        if envelope.causation_id is None:
            return None
        of_cause = self.deliveries_of.get(envelope.causation_id, [])[::-1]
        of_source = [
            record
            for record in of_cause
            if record.declared and record.declared.plugin == envelope.source
        ]
        return next(iter(of_source or of_cause), None)

    def _read(self, envelope: Envelope) -> Event | AnyEvent:
        event_type = self._types.get(envelope.topic) or self._type_of(envelope.topic)
        try:
            if event_type is not None:
                return envelope.decode(event_type)
            return AnyEvent(envelope.topic, envelope.version, envelope.value())
        except EventError:
            return AnyEvent(envelope.topic, envelope.version, envelope.data)

    def _type_of(self, topic: str) -> type[Event] | None:
        """The event type of this topic; of several the one that a handler's module knows."""
        found = _types_of(topic)
        if len(found) > 1:
            handlers = (consumer.handler for consumer in self.consumers)
            known = [
                value
                for handler in handlers
                for value in getattr(handler, "__globals__", {}).values()
                if isinstance(value, type)
            ]
            found = [event_type for event_type in found if event_type in known]
        return found[0] if len(found) == 1 else None

    # What is attempted

    def begins(self, context: Context, event: Event | AnyEvent) -> None:
        """A handler is about to run."""
        record = self._record(context.queue, context.envelope, context)
        record.event, record.attempt = event, context.attempt
        self._running[context] = record
        self._arrives(record)

    def waited_s(self, context: Context) -> float:
        """For how long the event has waited for its attempts, as the policy has it."""
        return self._waited_s[(context.consumer, context.envelope.id)]

    def will_wait(self, context: Context, delay_s: float) -> None:
        """It is to wait for its next attempt."""
        self._waited_s[(context.consumer, context.envelope.id)] += delay_s
        if context in self._running:
            self._running[context].delay_s = delay_s

    def ended(
        self, delivery: Delivery, outcome: Outcome, context: Context | None, *, crash: str = ""
    ) -> None:
        """A delivery came to its end; with a `crash` it will come again."""
        self.ends += 1
        record = self._running.pop(context, None) if context else None
        if record is None:
            if isinstance(outcome, (HandedBack, Paused, Quarantined)):
                return  # nobody has seen it
            envelope = context.envelope if context else _envelope_of(delivery)
            record = self._record(delivery.queue, envelope, context)
            self._arrives(record)
        _describe(record, outcome)
        if not delivery.is_live:
            record.end, record.reason = "crashed" if crash else "handed back", None
            record.why = crash or "its connection was lost, so it comes again"
        elif isinstance(outcome, (Succeeded, Duplicate, Discarded, DeadLettered)):
            self.owed[(record.queue, record.envelope.id if record.envelope else None)] -= 1
        if record.end == "dead-lettered":
            self._untold.append(record)

    def _arrives(self, record: DeliveryRecord) -> None:
        self.deliveries.append(record)
        if record.envelope is not None:
            self.deliveries_of[record.envelope.id].append(record)

    def _record(
        self, queue: str, envelope: Envelope | None, context: Context | None
    ) -> DeliveryRecord:
        name = context.consumer if context else None
        declared = next((one for one in self.consumers if one.name == name), None)
        return DeliveryRecord(
            consumer=name,
            queue=self._name(queue),
            envelope=envelope,
            event=self._as_taken(declared, envelope),
            attempt=0,
            declared=declared,
        )

    def _as_taken(self, consumer: Consumer | None, envelope: Envelope | None) -> Any:
        if consumer is None or envelope is None:
            return None
        try:
            return consumer.decode(envelope)
        except EventError:
            return None

    def _name(self, queue: str) -> str:
        return queue.removeprefix(self._prefix).removesuffix(".quarantine")

    # What is asked

    def take_untold(self) -> list[DeliveryRecord]:
        """The dead letters that no test was told of before."""
        untold, self._untold = self._untold, []
        return untold

    def still_waits_for(self, published: EventRecord) -> list[Consumer]:
        """The consumers to which the event has not come at all."""
        seen = {record.queue for record in self.deliveries_of.get(published.envelope.id, [])}
        return [
            one
            for one in self.consumers
            if _is_bound(one, published.topic) and one.queue not in seen
        ]


def _describe(record: DeliveryRecord, outcome: Outcome) -> None:
    match outcome:
        case Succeeded():
            record.end = "handled"
        case Duplicate():
            record.end = "duplicate"
        case Retried(failure=failure):
            record.end, record.error = "retried", failure.error
        case DeadLettered(failure=failure):
            record.end, record.error = "dead-lettered", failure.error
            record.reason = failure.reason
        case Discarded(why):
            record.end, record.why = "discarded", why
        case Paused(why):
            record.end, record.why = "handed back", f"a kill switch is open, {why}"
        case HandedBack() | Quarantined():
            record.end = "handed back"


def _is_bound(consumer: Consumer, topic: str) -> bool:
    return any(matches(pattern, topic) for pattern in consumer.patterns)


def _envelope_of(delivery: Delivery) -> Envelope | None:
    try:
        return delivery.envelope()
    except UndecodableError:
        return None


def _types_of(topic: str) -> list[type[Event]]:
    found: list[type[Event]] = []
    kinds: list[type[Event]] = [Event]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__topic__ == topic:
            found.append(kind)
    return found
