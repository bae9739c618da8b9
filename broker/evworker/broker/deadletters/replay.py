"""Replay: letters go back to the queue that they failed on, and to no other.

Each is published with a confirm and then removed: a crash in between makes a duplicate, never a
loss, and the replay can simply be run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from evworker.broker.deadletters.audit import Account, audited
from evworker.broker.deadletters.copying import copy_of, replayed_at
from evworker.broker.deadletters.counting import count_messages
from evworker.broker.deadletters.filters import EVERYTHING, LetterFilter
from evworker.broker.deadletters.letter import Letter
from evworker.broker.deadletters.putting import Putting, putting
from evworker.broker.deadletters.taking import Taking, taking
from evworker.broker.errors import BrokerError, ConfigurationError
from evworker.broker.pace import Pace

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from evworker.broker.connection import Connection

# A broker closes the channel of whoever holds a letter for half an hour. Long before, all that is
# held is handed back, and taken again.
_HELD_S = 15 * 60.0

_WATCHED_EVERY_S = 0.5
_FEWEST_FAILURES = 20
_FAILING_SHARE = 0.5


@dataclass(slots=True)
class Replay:
    """What became of a replay."""

    queue: str
    to: str
    waiting: int = 0
    """How many letters there were at the start; what came later was not touched."""
    replayed: int = 0
    hopeless: int = 0
    """How many of those replayed must fail again, unless code changed."""
    failed_again: int = 0
    """How many letters came meanwhile, when that was the reason to stop."""
    seconds: float = 0.0

    @property
    def was_stopped(self) -> bool:
        """Whether it stopped by itself, because what was replayed kept failing."""
        return bool(self.failed_again)


def origin_queue(queue: str) -> str:
    """The queue on which the letters of a dead-letter queue failed; raises ConfigurationError."""
    if not queue.endswith(".dlq"):
        raise ConfigurationError(
            f"the letters of {queue!r} never failed on a queue: say where to put them"
        )
    return queue.removesuffix(".dlq")


async def replay_dead_letters(
    connection: Connection,
    queue: str,
    letters: LetterFilter = EVERYTHING,
    *,
    to: str | None = None,
    limit: int | None = None,
    rate: float | None = None,
    on_progress: Callable[[int], None] = lambda _replayed: None,
) -> Replay:
    """Put letters of a dead-letter queue back to work, oldest first.

    They go to the queue that they failed on, or to `to`, at most `limit` of them and `rate` a
    second. Their attempts start afresh; their history stays on them. Letters that were not there at
    the start are left alone, so that what fails again is not picked up again; when most of it
    does, the replay stops.

    Each that was replayed is in its queue, on disk, and no longer here. If it is interrupted, or
    raises a BrokerError, at most as many as were on their way (some hundred) are in both places.
    Raises ConfigurationError or QueueNotFoundError before anything is done.
    """
    target = to or origin_queue(queue)
    if target == queue:
        raise ConfigurationError(f"{queue!r} can't be replayed to itself")
    replay = Replay(queue, target)
    with audited("replay", queue, to=target, filter=str(letters), limit=limit) as account:
        work = _Work(connection, replay, letters, limit, Pace(rate), account, on_progress)
        try:
            await work.run()
        except BrokerError as error:
            if not replay.replayed:
                raise
            raise type(error)(
                f"{error}\n{replay.replayed:,} letters were replayed before; run it again for the "
                "rest"
            ) from error
        if replay.was_stopped:
            account.outcome = "stopped: they keep failing"
    return replay


@dataclass(slots=True)
class _Work:
    connection: Connection
    replay: Replay
    letters: LetterFilter
    limit: int | None
    pace: Pace
    account: Account
    on_progress: Callable[[int], None]
    put: int = 0

    async def run(self) -> None:
        started, started_at = time.monotonic(), datetime.now(UTC)
        try:
            left = await self._pass(started_at, None)
            while left:
                left = await self._pass(started_at, left)
        finally:
            self.replay.seconds = time.monotonic() - started

    async def _pass(self, started_at: datetime, most: int | None) -> int:
        """Go through the letters once; returns how many of them are left to be gone through."""
        source = self.replay.queue
        async with taking(self.connection, source, to_remove=True) as held:
            if most is None:
                most = self.replay.waiting = held.waiting
            removed = self.replay.replayed
            confirmed = partial(self._confirmed, held)
            async with putting(self.connection, self.replay.to, confirmed) as copies:
                finished = await self._go_through(held, copies, most, started_at)
            removed = self.replay.replayed - removed
        return 0 if finished else most - removed

    async def _go_through(
        self,
        held: Taking,
        copies: Putting[tuple[DeliveredMessage, Letter]],
        most: int,
        started_at: datetime,
    ) -> bool:
        watch = _Watch(self.connection, held, self.replay)
        await watch.begin()
        hand_back_at = time.monotonic() + _HELD_S
        for position in range(1, most + 1):
            if self.put == self.limit or await watch.is_failing():
                return True
            if time.monotonic() > hand_back_at:
                return False
            message = await held.next()
            if message is None:
                return True
            letter = Letter.read(message, position)
            if self.letters.matches(letter) and not _was_replayed(letter, started_at):
                await self.pace.wait()
                properties = copy_of(letter, datetime.now(UTC))
                await copies.put(letter.body, properties, (message, letter))
                self.put += 1
        return True

    def _confirmed(self, held: Taking, token: tuple[DeliveredMessage, Letter]) -> None:
        message, letter = token
        held.remove(message)
        self.replay.replayed += 1
        self.replay.hopeless += letter.is_hopeless
        self.account.count += 1
        self.on_progress(self.replay.replayed)


class _Watch:
    """Notices that what was replayed comes back as dead letters again.

    AMQP tells no more than how many wait: what grows in the dead-letter queue, compared with what
    was taken out of the work queue.
    """

    def __init__(self, connection: Connection, held: Taking, replay: Replay) -> None:
        self._connection = connection
        self._held = held
        self._replay = replay
        self._replayed_before = replay.replayed
        self._backlog = 0
        self._due = time.monotonic() + _WATCHED_EVERY_S

    async def begin(self) -> None:
        self._backlog = await count_messages(self._connection, self._replay.to) or 0

    async def is_failing(self) -> bool:
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + _WATCHED_EVERY_S
        backlog = await count_messages(self._connection, self._replay.to) or 0
        handled = self._replay.replayed - self._replayed_before + self._backlog - backlog
        failures = await self._held.count() + self._held.arrivals - self._held.waiting
        if failures >= max(_FEWEST_FAILURES, _FAILING_SHARE * handled):
            self._replay.failed_again = failures
        return self._replay.was_stopped


def _was_replayed(letter: Letter, since: datetime) -> bool:
    """Whether it is one that failed again: others may take letters away, and bring those near."""
    at = replayed_at(letter)
    # The header is in milliseconds.
    return at is not None and at >= since.replace(microsecond=since.microsecond // 1000 * 1000)
