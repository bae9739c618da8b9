"""The story of a test as a tree: each event, who got it, how that ended, what it caused. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from evworker.workers.testing.ledger import Ledger
from evworker.workers.testing.records import DeliveryRecord, EventRecord, said

_WIDTH = 160
_OPEN = "   ◄── not settled"


@dataclass
class Branch:
    """Some lines, and what hangs below them."""

    lines: list[str]
    below: list[Branch] = field(default_factory=list)


def story(ledger: Ledger) -> str:
    """What caused what, from the events that the test published on."""
    telling = _Telling(ledger)
    lines: list[str] = []
    for branch in telling.roots():
        lines += branch.lines
        lines += _drawn(branch.below)
    return "\n".join(lines) or "nothing was published"


class _Telling:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._told: set[int] = set()

    def roots(self) -> Iterator[Branch]:
        for record in self._ledger.published:
            if record.cause is None:
                yield self._of_event(record)
        for record in self._ledger.published:  # whose cause nobody has seen
            if id(record) not in self._told:
                yield self._of_event(record)
        for delivery in self._ledger.deliveries:
            if id(delivery) not in self._told:
                yield Branch([_clipped(f"{delivery.queue}: what can't be read")])
                yield Branch([_clipped(f"└─ {delivery.outcome}")])

    def _of_event(self, record: EventRecord) -> Branch:
        self._told.add(id(record))
        branch = Branch([_clipped(f"{record.topic}  {said(record.event)}")])
        groups: dict[str, list[DeliveryRecord]] = {}
        for delivery in self._ledger.deliveries:
            of_it = delivery.envelope and delivery.envelope.id == record.envelope.id
            if of_it and id(delivery) not in self._told:
                self._told.add(id(delivery))
                groups.setdefault(delivery.consumer or delivery.queue, []).append(delivery)
        branch.below += [self._of_deliveries(name, group) for name, group in groups.items()]
        branch.below += [
            Branch([f"{consumer.name}: its handler has not begun{_OPEN}"])
            for consumer in self._ledger.still_waits_for(record)
        ]
        if not record.has_consumer:
            branch.lines[0] += "   (nobody is bound to it)"
        return branch

    def _of_deliveries(self, name: str, deliveries: Sequence[DeliveryRecord]) -> Branch:
        lines: list[str] = []
        for outcome, alike in groupby(delivery.outcome for delivery in deliveries):
            start = f"{name}: " if not lines else " " * (len(name) + 2)
            count = len([*alike])
            lines.append(_clipped(start + outcome) + (f"  ({count} times)" if count > 1 else ""))
        if deliveries[-1].end in (None, "retried", "handed back", "crashed"):
            lines[-1] += _OPEN
        caused = [one for one in self._ledger.published if one.cause in deliveries]
        return Branch(lines, [self._of_event(one) for one in caused if id(one) not in self._told])


def _drawn(branches: Sequence[Branch]) -> list[str]:
    drawn = []
    for branch in branches:
        is_last = branch is branches[-1]
        first, rest = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        lines = branch.lines + _drawn(branch.below)
        drawn += [(rest if number else first) + line for number, line in enumerate(lines)]
    return drawn


def _clipped(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…"
