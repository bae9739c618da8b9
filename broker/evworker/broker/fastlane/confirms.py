"""Which publishes of a channel the broker has yet to answer, and what it says of each. Pure.

::

    tags       1  2  3  4  5  6
    ack 4, with all before it        1, 2, 3 and 4 are confirmed
    return, then ack 6               6 came back: nothing takes it; its ack means nothing more
    nack 5                           5 is refused

Each publish is answered once, and what nobody awaits any more is still counted, so that the numbers
of all others stay right (https://www.rabbitmq.com/docs/confirms#publisher-confirms).
"""

from __future__ import annotations

import asyncio
from math import inf

Confirm = asyncio.Future[BaseException | None]
"""Done with None once the broker has the message, and else with why that is not known. Never fails:
an error that is shared by hundreds must not be raised in each of them."""

Route = tuple[str, str, bool]
"""Exchange, routing key, and whether what nothing takes comes back: `mandatory`."""

# Of one that is on its way: its confirm, its deadline, its route, its id and its body. Of one that
# nobody awaits any more the body's hash: it may be long until the broker answers.
_Sent = tuple[Confirm, float, Route, str | None, bytes | int]


class RefusedError(Exception):
    """The broker did not take it: a nack."""


class ReturnedError(Exception):
    """Nothing at its exchange took it, and it came back."""


class Confirms:
    """The publishes of one channel, from its opening on: their tags are 1, 2, 3 and so on."""

    def __init__(self) -> None:
        self._first = 1
        """No tag below it is on its way."""
        self._last = 0
        self._sent: dict[int, _Sent] = {}
        self._returned: set[int] = set()
        """Those among them that came back, and whose ack is still to come."""

    def __len__(self) -> int:
        return len(self._sent)

    def add(
        self, confirm: Confirm, deadline: float, route: Route, message_id: str | None, body: bytes
    ) -> None:
        """The next one is on its way."""
        self._last += 1
        self._sent[self._last] = (confirm, deadline, route, message_id, body)

    def answer(self, tag: int, failure: BaseException | None, *, several: bool) -> None:
        """The broker has said so of one, or of `several`: of it and all before it."""
        if several:
            # Tag 0 stands for all of them.
            last = min(tag, self._last) if tag else self._last
            for one in range(self._first, last + 1):
                self._take(one, failure)
            self._first = max(self._first, last + 1)
            return
        self._take(tag, failure)
        if tag == self._first:
            while self._first <= self._last and self._first not in self._sent:
                self._first += 1

    def give_back(
        self, exchange: str, routing_key: str, message_id: str | None, body: bytes, why: Exception
    ) -> bool:
        """One that was sent like this came back; False if there is none.

        Of several that are the same the oldest: none of them can be told from the others.
        """
        route = (exchange, routing_key, True)
        for tag, (confirm, _, its_route, its_id, its_body) in self._sent.items():
            if (
                its_body == (body if isinstance(its_body, bytes) else hash(body))
                and its_id == message_id
                and its_route == route
                and tag not in self._returned
            ):
                self._returned.add(tag)
                _answer(confirm, why)
                return True
        return False

    def expire(self, now: float, failure: BaseException) -> float:
        """Answer those whose deadline is over; returns the next deadline, infinity without one."""
        earliest, over = inf, []
        for tag, (confirm, deadline, _, _, body) in self._sent.items():
            if deadline <= now or confirm.done():
                _answer(confirm, failure)
                if isinstance(body, bytes):
                    over.append(tag)
            elif deadline < earliest:
                earliest = deadline
        for tag in over:
            confirm, deadline, route, message_id, body = self._sent[tag]
            self._sent[tag] = confirm, deadline, route, message_id, hash(body)
        return earliest

    def end(self, failure: BaseException) -> None:
        """Nothing more will be said: answer all that there is."""
        sent, self._sent = self._sent, {}
        self._returned.clear()
        for confirm, *_ in sent.values():
            _answer(confirm, failure)

    def _take(self, tag: int, failure: BaseException | None) -> None:
        sent = self._sent.pop(tag, None)
        if sent is None:
            return
        if self._returned:
            self._returned.discard(tag)
        confirm = sent[0]
        if not confirm.done():
            confirm.set_result(failure)


def _answer(confirm: Confirm, failure: BaseException) -> None:
    if not confirm.done():
        confirm.set_result(failure)
