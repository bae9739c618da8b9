"""The story of a test as a tree: each event, who got it, how that ended, what it caused. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from evworker.workers.testing.ledger import Ledger
from evworker.workers.testing.records import DeliveryRecord, EventRecord, said

_WIDTH = 160
_DEPTH = 20
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
        self._caused: defaultdict[int, list[EventRecord]] = defaultdict(list)
        for record in ledger.published:
            self._caused[id(record.cause)].append(record)

    def roots(self) -> Iterator[Branch]:
        for record in self._ledger.published:
            if record.cause is None:
                yield self._of_event(record)
        for record in self._ledger.published:  # whose cause nobody has seen
            if id(record) not in self._told:
                yield self._of_event(record)
        others = [one for one in self._ledger.deliveries if id(one) not in self._told]
        for delivery in others[:_DEPTH]:
            yield Branch([_clipped(f"{delivery.queue}: {delivery.what}")])
            yield Branch([_clipped(f"└─ {delivery.outcome}")])
        if others[_DEPTH:]:
            yield Branch([f"… and {len(others) - _DEPTH} deliveries after that"])

    def _of_event(self, record: EventRecord, depth: int = 1) -> Branch:
        self._told.add(id(record))
        branch = Branch([_clipped(f"{record.topic}  {said(record.event)}")])
        groups: dict[str, list[DeliveryRecord]] = {}
        for delivery in self._ledger.deliveries_of.get(record.envelope.id, []):
            if id(delivery) not in self._told:
                self._told.add(id(delivery))
                groups.setdefault(delivery.consumer or delivery.queue, []).append(delivery)
        branch.below += [self._of_deliveries(name, group, depth) for name, group in groups.items()]
        branch.below += [
            Branch([f"{consumer.name}: its handler has not begun{_OPEN}"])
            for consumer in self._ledger.still_waits_for(record)
        ]
        if not record.has_consumer:
            branch.lines[0] += "   (nobody is bound to it)"
        return branch

    def _of_deliveries(self, name: str, deliveries: Sequence[DeliveryRecord], depth: int) -> Branch:
        lines: list[str] = []
        for outcome, alike in groupby(delivery.outcome for delivery in deliveries):
            start = f"{name}: " if not lines else " " * (len(name) + 2)
            count = len([*alike])
            lines.append(_clipped(start + outcome) + (f"  ({count} times)" if count > 1 else ""))
        if deliveries[-1].end in (None, "retried", "handed back", "crashed"):
            lines[-1] += _OPEN
        caused = [one for delivery in deliveries for one in self._caused[id(delivery)]]
        if caused and depth == _DEPTH:
            return Branch(lines, [Branch([f"… and {self._passed_over(caused)} events after that"])])
        return Branch(
            lines, [self._of_event(one, depth + 1) for one in caused if id(one) not in self._told]
        )

    def _passed_over(self, events: list[EventRecord]) -> int:
        """How many events these are, with all that they caused; none is told any more."""
        left, count = [*events], 0
        while left:
            record = left.pop()
            count += 1
            self._told.add(id(record))
            for delivery in self._ledger.deliveries_of.get(record.envelope.id, []):
                if id(delivery) not in self._told:
                    self._told.add(id(delivery))
                    left += self._caused[id(delivery)]
        return count


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
