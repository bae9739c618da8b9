"""What a channel has delivered, and nobody has settled yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from evworker.broker.embedded.message import Entry
from evworker.broker.embedded.queues import Consumer, Queue
from evworker.broker.embedded.refusals import Code, Refusal


@dataclass(slots=True)
class Held:
    """One delivery; one that was asked for by basic.get has no consumer."""

    queue: Queue
    entry: Entry
    consumer: Consumer | None


class Unsettled:
    """By their tags, which count up."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def queues(self) -> Iterable[Queue]:
        """The queue of each."""
        return (held.queue for held in self._held.values())

    def add(self, tag: int, held: Held) -> None:
        self._held[tag] = held
        if held.consumer is not None:
            held.consumer.unsettled += 1

    def take(self, tag: int, *, multiple: bool) -> list[Held]:
        """Forget it, or all up to it, which nobody may settle again; tag 0 is the last.

        Raises Refusal if there is none of this tag.
        """
        if tag not in self._held and not (multiple and tag == 0):
            raise Refusal(Code.PRECONDITION_FAILED, f"unknown delivery tag {tag}")
        last = tag or max(self._held, default=0)
        tags = [*takewhile(lambda each: each <= last, self._held)] if multiple else [tag]
        taken = [self._held.pop(each) for each in tags]
        for held in taken:
            if held.consumer is not None:
                held.consumer.unsettled -= 1
        return taken


def give_back(taken: Iterable[Held]) -> None:
    """Put them back into their queues."""
    by_queue: dict[Queue, list[Entry]] = {}
    for held in taken:
        by_queue.setdefault(held.queue, []).append(held.entry)
    for queue, entries in by_queue.items():
        queue.give_back(entries)
