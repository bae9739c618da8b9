"""The book of confirms, against a model that is too slow to be used and too simple to be wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evworker.broker.fastlane.confirms import Confirm, Confirms, RefusedError, ReturnedError

LOST = ConnectionError("lost")
LATE = TimeoutError()
REFUSED = RefusedError()
RETURNED = ReturnedError()

Like = tuple[str, str, bytes]
LIKES = st.tuples(
    st.sampled_from(["", "events"]), st.sampled_from(["a", "b"]), st.sampled_from([b"1", b"2"])
)
TAGS = st.integers(0, 12)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


Told = BaseException | str | None


class Sent:
    """One publish of the model: what it is like, and what it must have been told."""

    def __init__(self, confirm: Confirm, tag: int, like: Like, deadline: float) -> None:
        self.confirm = confirm
        self.tag = tag
        self.like = like
        self.deadline = deadline
        self.is_answered = False
        self.is_returned = False
        self.told: Told = "nothing"

    def tell(self, what: Told) -> None:
        if self.told == "nothing":
            self.told = what


class TheBook(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.book = Confirms()
        self.model: list[Sent] = []

    def teardown(self) -> None:
        self.loop.close()

    @rule(like=LIKES, deadline=st.integers(1, 9))
    def send(self, like: Like, deadline: int) -> None:
        exchange, id, body = like
        sent = Sent(self.loop.create_future(), len(self.model) + 1, like, deadline)
        self.model.append(sent)
        self.book.add(sent.confirm, deadline, (exchange, "key", True), id, body)

    @rule(answer=st.sampled_from([None, REFUSED]), tag=TAGS, several=st.booleans())
    def answer(self, answer: Exception | None, tag: int, several: bool) -> None:
        self.book.answer(tag, answer, several=several)
        for sent in self._unanswered():
            if sent.tag == tag or (several and (sent.tag < tag or not tag)):
                sent.tell(answer)
                sent.is_answered = True

    @rule(like=LIKES)
    def give_back(self, like: Like) -> None:
        exchange, id, body = like
        found = self.book.give_back(exchange, "key", id, body, RETURNED)
        alike = [one for one in self._unanswered() if one.like == like and not one.is_returned]
        assert found == bool(alike)
        if alike:
            alike[0].is_returned = True
            alike[0].tell(RETURNED)

    @rule(tag=TAGS)
    def cancel(self, tag: int) -> None:
        for sent in self.model[tag : tag + 1]:
            if sent.confirm.cancel():
                sent.tell("cancelled")

    @rule(now=st.integers(0, 9))
    def expire(self, now: int) -> None:
        earliest = self.book.expire(now, LATE)
        for sent in self._unanswered():
            if sent.deadline <= now:
                sent.tell(LATE)
        assert earliest == min((s.deadline for s in self.model if s.told == "nothing"), default=inf)

    @rule()
    def end(self) -> None:
        self.book.end(LOST)
        for sent in self._unanswered():
            sent.tell(LOST)
            sent.is_answered = True

    @invariant()
    def each_was_told_once_and_rightly(self) -> None:
        assert [told(sent.confirm) for sent in self.model] == [sent.told for sent in self.model]
        assert len(self.book) == len(self._unanswered())

    def _unanswered(self) -> list[Sent]:
        return [sent for sent in self.model if not sent.is_answered]


TestTheBook = TheBook.TestCase


def told(confirm: Confirm) -> Told:
    if not confirm.done():
        return "nothing"
    return "cancelled" if confirm.cancelled() else confirm.result()


def test_what_may_be_dropped_is_never_taken_for_what_came_back(
    loop: asyncio.AbstractEventLoop,
) -> None:
    book = Confirms()
    droppable, wanted = loop.create_future(), loop.create_future()
    book.add(droppable, inf, ("events", "key", False), "id", b"body")
    book.add(wanted, inf, ("events", "key", True), "id", b"body")
    assert book.give_back("events", "key", "id", b"body", RETURNED)
    assert wanted.result() is RETURNED
    assert not droppable.done()


def test_the_return_of_one_that_nobody_awaits_is_not_taken_for_its_successors(
    loop: asyncio.AbstractEventLoop,
) -> None:
    book = Confirms()
    route = ("events", "key", True)
    given_up, again = loop.create_future(), loop.create_future()
    book.add(given_up, 1.0, route, "id", b"body")
    book.expire(2.0, LATE)
    book.add(again, 9.0, route, "id", b"body")
    assert book.give_back("events", "key", "id", b"body", RETURNED)
    book.answer(1, None, several=False)
    assert not again.done()
    book.answer(2, None, several=False)
    assert again.result() is None


def test_the_body_of_one_that_nobody_awaits_is_not_kept(loop: asyncio.AbstractEventLoop) -> None:
    book = Confirms()
    body = bytes(1_000)
    kept_by_us = sys.getrefcount(body)
    book.add(loop.create_future(), 1.0, ("events", "key", True), "id", body)
    book.expire(2.0, LATE)
    assert sys.getrefcount(body) == kept_by_us
    assert not book.give_back("events", "key", "id", bytes(1_001), RETURNED)
    assert book.give_back("events", "key", "id", bytes(1_000), RETURNED)


def test_a_tag_that_was_never_sent_means_no_more_than_all(loop: asyncio.AbstractEventLoop) -> None:
    book = Confirms()
    first, second = loop.create_future(), loop.create_future()
    book.add(first, inf, ("", "q", True), "1", b"")
    book.answer(2**63, None, several=True)
    assert first.result() is None
    book.add(second, inf, ("", "q", True), "2", b"")
    book.answer(2, REFUSED, several=True)
    assert second.result() is REFUSED
