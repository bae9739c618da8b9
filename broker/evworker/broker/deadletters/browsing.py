"""Looking at dead letters, so that looking changes nothing and loses nothing, however often."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Self

from evworker.broker.deadletters.filters import EVERYTHING, LetterFilter
from evworker.broker.deadletters.letter import Letter
from evworker.broker.deadletters.taking import taking

if TYPE_CHECKING:
    from collections.abc import Callable

    from evworker.broker.connection import Connection


@dataclass(slots=True)
class LetterGroup:
    """Letters that failed in the same way: one exception type, one place, one consumer."""

    group: str
    """The fingerprint, which a `LetterFilter` takes."""
    count: int
    reason: str
    """Of the newest of them, as are the error's message and the id."""
    error_type: str | None
    error_message: str | None
    frame: str | None
    consumer: str | None
    first_seen: datetime | None
    last_seen: datetime | None
    example_id: str | None

    @classmethod
    def of(cls, letter: Letter) -> Self:
        """The group of the letter, with nothing in it yet."""
        failure = letter.failure
        return cls(
            group=letter.group,
            count=0,
            reason=failure.reason,
            error_type=failure.error_type,
            error_message=failure.error_message,
            frame=letter.frame,
            consumer=failure.consumer,
            first_seen=letter.died_at,
            last_seen=letter.died_at,
            example_id=letter.id,
        )

    def add(self, letter: Letter) -> None:
        self.count += 1
        self.first_seen = _earlier(self.first_seen, letter.died_at)
        if self.last_seen is None or (letter.died_at and letter.died_at >= self.last_seen):
            self.last_seen = letter.died_at
            self.reason = letter.failure.reason
            self.error_message = letter.failure.error_message
            self.example_id = letter.id or self.example_id


@dataclass(slots=True)
class Survey:
    """What there is of the letters that are meant."""

    waiting: int = 0
    """How many letters were read, meant or not."""
    matched: int = 0
    hopeless: int = 0
    """How many of those matched must fail again, unless code changes."""
    oldest: datetime | None = None
    """When the first of them died; None where nobody knows."""
    newest: datetime | None = None
    reasons: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """How many there are of each reason and error type."""

    def add(self, letter: Letter) -> None:
        self.matched += 1
        self.hopeless += letter.is_hopeless
        self.reasons[letter.failure.reason, letter.failure.error_type] += 1
        self.oldest = _earlier(self.oldest, letter.died_at)
        self.newest = _later(self.newest, letter.died_at)


async def browse_dead_letters(
    connection: Connection, queue: str, limit: int, letters: LetterFilter = EVERYTHING
) -> list[Letter]:
    """The first `limit` letters that are meant, oldest first; they stay where they are.

    Raises QueueNotFoundError, or BrokerError.
    """
    found: list[Letter] = []
    async with taking(connection, queue) as held:
        while len(found) < limit and (message := await held.next()) is not None:
            letter = Letter.read(message, held.position)
            if letters.matches(letter):
                found.append(letter)
    return found


async def read_dead_letters(connection: Connection, queue: str) -> AsyncGenerator[Letter, None]:
    """Yield the letters of the queue, oldest first; they stay where they are.

    They are held until the generator is closed, and handed back in the order they came: use it
    with `contextlib.aclosing`. None but the one yielded is kept in memory. Raises
    QueueNotFoundError, or BrokerError.
    """
    async with taking(connection, queue) as held:
        while (message := await held.next()) is not None:
            yield Letter.read(message, held.position)


async def survey_dead_letters(
    connection: Connection,
    queue: str,
    letters: LetterFilter = EVERYTHING,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], None] = lambda _read: None,
) -> Survey:
    """Read all letters, or until `limit` of those that are meant, and say what there is.

    `on_progress` is told how many were read. Raises QueueNotFoundError, or BrokerError.
    """
    survey = Survey()
    async with aclosing(read_dead_letters(connection, queue)) as reading:
        async for letter in reading:
            survey.waiting += 1
            on_progress(survey.waiting)
            if letters.matches(letter):
                survey.add(letter)
                if survey.matched == limit:
                    break
    return survey


async def group_dead_letters(
    connection: Connection,
    queue: str,
    letters: LetterFilter = EVERYTHING,
    *,
    on_progress: Callable[[int], None] = lambda _read: None,
) -> list[LetterGroup]:
    """The ways in which the letters failed, the most frequent first.

    Raises QueueNotFoundError, or BrokerError.
    """
    groups: dict[str, LetterGroup] = {}
    async with aclosing(read_dead_letters(connection, queue)) as reading:
        async for letter in reading:
            on_progress(letter.position)
            if letters.matches(letter):
                fingerprint = letter.group
                if fingerprint not in groups:
                    groups[fingerprint] = LetterGroup.of(letter)
                groups[fingerprint].add(letter)
    return sorted(groups.values(), key=lambda group: -group.count)


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one and other else one or other


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other
