"""Letters taken out of their queue in order, held, and then removed or handed back in that order.

They are taken in rounds: the broker pushes letters up to a prefetch that counts what is held, so
that each round is a subscription of its own, which ends when it has brought as much as that. Only
tags are kept of what is held: when the process is killed meanwhile, the broker puts all of it back.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import aiormq.exceptions
import pamqp.frame
from aiormq import spec

from evworker.broker.cancellation import cancel_all
from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel, written
from evworker.broker.deadletters.counting import Look, look_at
from evworker.broker.deadletters.gathering import Gathering
from evworker.broker.errors import BrokerError, QueueNotFoundError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from evworker.broker.connection import Connection

SETTLE_TIMEOUT_S = 2.0
_SETTLED_WITHIN_S = 30.0

_MOST_AT_ONCE = 1_000
_FIRST_AT_ONCE = 50
_FEWEST_AT_ONCE = 10
_BYTES_AT_ONCE = 16 * 1024 * 1024

# For each ack a broker goes through all that its channel holds and that came before.
_MOST_HELD = 1_000

_QUIET_S = 0.25  # after which it is asked whether anything is left
_PATIENCE_S = 20.0

# A quorum queue takes what is returned in one go as an Erlang map, which is in order up to 32
# entries only; and its client in the broker merges what it is told while 32 commands are on their
# way.
_IN_ORDER = 32
_BATCHES_AT_ONCE = 16


@asynccontextmanager
async def taking(
    connection: Connection, queue: str, *, to_remove: bool = False
) -> AsyncIterator[Taking]:
    """Take letters of the queue; what was not removed is handed back at the end, in order.

    `to_remove` says that some will be removed. Raises QueueNotFoundError, or BrokerError.
    """
    opened = Taking(connection, queue, most_held=_MOST_HELD if to_remove else None)
    try:
        await opened.begin()
        try:
            yield opened
        finally:
            if opened.is_live:
                await opened.finish()
    finally:
        await opened.close()


class Taking:
    """What was taken of one queue. Made by `taking`."""

    def __init__(self, connection: Connection, queue: str, *, most_held: int | None) -> None:
        self.waiting = 0
        """How many letters were ready at the start; more are not taken."""
        self.arrivals = 0
        """How many have come since."""
        self.position = 0
        """The place of the letter that `next` gave last, from 1."""
        self._others = 0
        self._connection = connection
        self._queue = queue
        self._most_held = most_held
        self._holders: dict[int, _Holder] = {}
        """By the number of their channel; only the last one takes letters."""
        self._holder: _Holder
        self._arrived: deque[DeliveredMessage] = deque()
        self._rounds = 0
        self._round: asyncio.Task[None] | None = None
        self._at_once = _FIRST_AT_ONCE
        self._news = asyncio.Event()
        """The round is full, or the channel or the queue is gone."""
        self._last_was_returned = False
        self._ended = False
        self._deleted = False

    async def begin(self) -> None:
        """Look how many there are; raises QueueNotFoundError, or BrokerError."""
        with self._errors():
            await self._open_holder()
            try:
                self.waiting, self._others = await self._look()
            except aiormq.exceptions.ChannelNotFoundEntity as error:
                where = self._connection.address
                raise QueueNotFoundError(f"there is no queue {self._queue!r} on {where}") from error

    @property
    def is_live(self) -> bool:
        """Whether what is held can still be settled; if not, the broker puts it back."""
        return bool(self._holders) and not any(
            holder.channel.is_closed for holder in self._holders.values()
        )

    async def next(self) -> DeliveredMessage | None:
        """The next letter, held from now on; None when there are no more.

        Raises BrokerError when the connection is lost.
        """
        while not self._arrived:
            if not self._has_more:
                return None
            await self._take()
        self.position += 1
        return self._arrived.popleft()

    def remove(self, message: DeliveredMessage) -> None:
        """Take the letter out of its queue for good."""
        self._holders[message.channel.number].remove(tag_of(message))

    async def count(self) -> int:
        """How many letters are ready: neither held here nor by anybody else."""
        with self._errors():
            return (await self._look()).ready

    async def finish(self) -> None:
        """Put all that is held back where it was; what was removed is gone when it returns."""
        with self._errors():
            if self._round is not None:
                await self._take()
            await self._take_what_was_returned()
            for holder in self._holders.values():
                await holder.out.written()
            await self._hand_back()
            await self._settled()

    async def close(self) -> None:
        if self._round is not None:
            await cancel_all(self._round)
        for holder in self._holders.values():
            await close_channel(holder.channel)

    # Taking

    async def _take(self) -> None:
        """Take a round to its end, also one that somebody has begun who was cancelled."""
        if self._round is None:
            self._round = asyncio.create_task(self._take_round())
        await asyncio.wait([self._round])
        ended, self._round = self._round, None
        with self._errors():
            ended.result()

    async def _take_round(self) -> None:
        """Take as many letters as may be in memory at once, or as there are.

        A subscription is only ended once it has brought all that it may: a quorum queue takes back
        what is still on its way then, and not in order.
        """
        if self._most_held is not None and len(self._holder.held) >= self._most_held:
            await self._open_holder()
        self._rounds += 1
        taken = _Round(self._rounds, min(self._at_once, self.waiting - self.arrivals))
        channel, consumer = self._holder.channel, f"round-{taken.number}"
        self._news.clear()
        await channel.basic_qos(prefetch_count=taken.wanted, timeout=RPC_TIMEOUT_S)
        await channel.basic_consume(
            self._queue,
            partial(self._on_message, taken),
            consumer_tag=consumer,
            timeout=RPC_TIMEOUT_S,
        )
        await self._fill(taken)
        # Never with nowait: aiormq would drop the deliveries that are on their way, unsettled.
        await channel.basic_cancel(consumer, timeout=RPC_TIMEOUT_S)
        self._at_once = taken.next_size()

    async def _fill(self, taken: _Round) -> None:
        loop = asyncio.get_running_loop()
        arrived, deadline = 0, loop.time() + _PATIENCE_S
        while taken.arrived < taken.wanted:
            self._raise_if_gone()
            if taken.arrived > arrived:
                arrived, deadline = taken.arrived, loop.time() + _PATIENCE_S
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._news.wait()
            except TimeoutError:
                if (await self._look()).ready == 0 and taken.arrived == arrived:
                    self._ended = True  # somebody else has taken the rest
                    return
                if loop.time() > deadline and taken.arrived == arrived:
                    raise BrokerError(
                        f"{self._queue!r} has letters and gives none: does somebody else "
                        "consume it?"
                    ) from None

    async def _on_message(self, taken: _Round, message: DeliveredMessage) -> None:
        self._holders[message.channel.number].held[tag_of(message)] = taken.number
        self.arrivals += 1
        self._last_was_returned = bool(message.redelivered)
        self._arrived.append(message)
        taken.add(message)
        if taken.arrived == taken.wanted:
            self._news.set()

    # Handing back

    async def _take_what_was_returned(self) -> None:
        """A quorum queue keeps what was handed back in a line of its own, before all else.

        So that nobody changes places, that line is first taken to its end.
        """
        while self._last_was_returned and self._has_more and self._holds_any():
            self._arrived.clear()
            await self._take()

    async def _hand_back(self) -> None:
        alone, ready = True, (await self._look()).ready if self._holds_any() else 0
        for holder in self._holders.values():
            for batches in _in_groups(list(_batches(holder.held.items()))):
                for last, size in batches:
                    # Nacks: closing the channel would count as a failed delivery from 4.3 on.
                    nack = holder.channel.basic_nack(last, multiple=True, wait=False)
                    await written(holder.channel, nack)
                    ready += size
                if alone:
                    alone, ready = await self._are_back(ready)

    async def _are_back(self, expected: int) -> tuple[bool, int]:
        # A queue takes letters back in its own time, and may answer a later request before. The
        # wait ends without them where somebody else takes letters, too. No look is cut short: its
        # channel would be closed.
        loop = asyncio.get_running_loop()
        end = loop.time() + SETTLE_TIMEOUT_S
        while (ready := (await self._look()).ready) < expected:
            if loop.time() >= end:
                return False, ready
            await asyncio.sleep(0.002)
        return True, ready

    async def _settled(self) -> None:
        """Wait until the queue has done all that it was told.

        The broker's channel keeps what a busy quorum queue can't take yet, and forgets it when it
        is closed: letters that were removed would come back.
        """
        pause_s = 0.002
        loop = asyncio.get_running_loop()
        # Somebody else who began to read meanwhile counts, too, and is not waited for.
        end = loop.time() + _SETTLED_WITHIN_S
        while self.arrivals and (await self._look()).subscriptions > self._others:
            if loop.time() >= end:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.1)

    # The channels

    def _errors(self) -> AbstractContextManager[None]:
        return broker_errors(f"read from {self._queue!r}")

    @property
    def _has_more(self) -> bool:
        return self.arrivals < self.waiting and not self._ended

    def _holds_any(self) -> bool:
        return any(holder.held for holder in self._holders.values())

    async def _look(self) -> Look:
        return await look_at(self._holder.channel, self._queue)

    async def _open_holder(self) -> None:
        channel = await self._connection.channel()
        self._holder = self._holders[channel.number] = _Holder(channel)
        channel.closing.add_done_callback(lambda _closing: self._news.set())
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)

    def _on_cancel(self, _frame: spec.Basic.Cancel) -> None:
        self._deleted = True
        self._news.set()

    def _raise_if_gone(self) -> None:
        if self._deleted:
            raise BrokerError(f"the queue {self._queue!r} was deleted or moved meanwhile")
        for holder in self._holders.values():
            if holder.channel.is_closed:
                closing = holder.channel.closing
                raise (None if closing.cancelled() else closing.exception()) or BrokerError(
                    "the connection was lost"
                )


class _Round:
    """What one subscription brings, as many letters as it was made for."""

    def __init__(self, number: int, wanted: int) -> None:
        self.number = number
        self.wanted = wanted
        self.arrived = 0
        self._bytes = 0

    def add(self, message: DeliveredMessage) -> None:
        self.arrived += 1
        self._bytes += _size_of(message)

    def next_size(self) -> int:
        """How many of such letters may be in memory at once."""
        average = self._bytes // self.arrived if self.arrived else _BYTES_AT_ONCE
        return max(_FEWEST_AT_ONCE, min(_MOST_AT_ONCE, _BYTES_AT_ONCE // max(1, average)))


class _Holder:
    """A channel, and the tags of what is held on it, in order, each with its round's number."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.out = Gathering(channel)
        self.held: dict[int, int] = {}
        self._removed: list[int] = []
        """Those whose acks are to be written."""

    def remove(self, tag: int) -> None:
        self.held.pop(tag, None)
        self._removed.append(tag)
        if len(self._removed) == 1:
            self.out.send(self._acks)

    def _acks(self) -> bytes:
        """One for all before which nothing is held, and one for each of the others.

        A broker that is told of hundreds one by one keeps some of them from a busy quorum queue,
        and forgets these if the connection is cut.
        """
        removed, self._removed = sorted(self._removed), []
        first_held = next(iter(self.held), removed[-1] + 1)
        alone = bisect_left(removed, first_held)
        acks = [spec.Basic.Ack(tag, multiple=True) for tag in removed[:alone][-1:]]
        acks += [spec.Basic.Ack(tag, multiple=False) for tag in removed[alone:]]
        return b"".join(pamqp.frame.marshal(ack, self.channel.number) for ack in acks)


def tag_of(message: DeliveredMessage) -> int:
    return cast("int", cast("spec.Basic.Deliver", message.delivery).delivery_tag)


def _size_of(message: DeliveredMessage) -> int:
    """About what it takes in memory."""
    headers = message.header.properties.headers or {}
    texts = sum(len(value) for value in headers.values() if isinstance(value, str | bytes))
    return len(message.body) + texts + 2_000


def _batches(held: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The last tag and the size of each batch, none of which spans two rounds."""
    size, last, current = 0, 0, 0
    for tag, number in held:
        if size and (size == _IN_ORDER or number != current):
            yield last, size
            size = 0
        size, last, current = size + 1, tag, number
    if size:
        yield last, size


def _in_groups(batches: list[tuple[int, int]]) -> Iterable[list[tuple[int, int]]]:
    """The first goes alone: acks may be on their way before it."""
    yield batches[:1]
    for start in range(1, len(batches), _BATCHES_AT_ONCE):
        yield batches[start : start + _BATCHES_AT_ONCE]
