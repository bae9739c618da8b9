"""The messages of a queue that wait for somebody to take them, in the order of their kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator

from evworker.broker.embedded.message import Entry

_HIGH_IN_A_ROW = 2
_NORMAL_PRIORITY = 4


class Ready(ABC):
    """Several lines, each first in, first out; a kind of queue says who stands in which."""

    def __init__(self, lanes: int) -> None:
        self.size = 0
        """Bytes of all bodies."""
        self._lanes: list[deque[Entry]] = [deque() for _ in range(lanes)]

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    @abstractmethod
    def push(self, entry: Entry) -> None: ...

    @abstractmethod
    def give_back(self, entries: Iterable[Entry]) -> None: ...

    @abstractmethod
    def pop(self) -> Entry: ...

    def fronts(self) -> Iterator[Entry]:
        """Who may be found to be expired: only what nothing else stands before."""
        return (lane[0] for lane in self._lanes if lane)

    def remove_front(self, entry: Entry) -> None:
        """Take out one of the `fronts`."""
        for lane in self._lanes:
            if lane and lane[0] is entry:
                self._pop_of(lane)

    def _pop_of(self, lane: deque[Entry]) -> Entry:
        entry = lane.popleft()
        self.size -= entry.size
        return entry


class ClassicReady(Ready):
    """By priority, if the queue has any; who comes back gets its old place."""

    def __init__(self, max_priority: int) -> None:
        super().__init__(max_priority + 1)

    def push(self, entry: Entry) -> None:
        self._lane(entry).append(entry)
        self.size += entry.size

    def give_back(self, entries: Iterable[Entry]) -> None:
        for entry in sorted(entries, key=lambda each: each.position, reverse=True):
            lane = self._lane(entry)
            place = next(
                (at for at, other in enumerate(lane) if other.position > entry.position), len(lane)
            )
            lane.insert(place, entry)
            self.size += entry.size

    def pop(self) -> Entry:
        return self._pop_of(next(lane for lane in reversed(self._lanes) if lane))

    def _lane(self, entry: Entry) -> deque[Entry]:
        return self._lanes[min(entry.message.priority or 0, len(self._lanes) - 1)]


class QuorumReady(Ready):
    """Who came back goes first, then two of high priority for each normal one."""

    def __init__(self) -> None:
        super().__init__(3)
        self._returned, self._high, self._normal = self._lanes
        self._turn = 0

    def push(self, entry: Entry) -> None:
        is_high = (entry.message.priority or 0) > _NORMAL_PRIORITY
        (self._high if is_high else self._normal).append(entry)
        self.size += entry.size

    def give_back(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._returned.append(entry)
            self.size += entry.size

    def pop(self) -> Entry:
        lane = self._front()
        if lane is not self._returned:
            self._turn = 0 if self._turn == _HIGH_IN_A_ROW else self._turn + 1
        return self._pop_of(lane)

    def fronts(self) -> Iterator[Entry]:
        front = self._front()
        return iter((front[0],) if front else ())

    def _front(self) -> deque[Entry]:
        if self._returned:
            return self._returned
        if self._high and not (self._normal and self._turn == _HIGH_IN_A_ROW):
            return self._high
        return self._normal
