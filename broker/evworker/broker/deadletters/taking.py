"""Letters taken out of their queue in order, held, and then removed or handed back in that order.

The broker pushes letters up to a prefetch that counts what is held, so that they are taken in
rounds: a subscription for each, that ends when it holds as much as that. Only tags are kept of what
is held: when the process is killed meanwhile, the broker puts all of it back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import aiormq.exceptions
import pamqp.frame
from aiormq import spec

from evworker.broker.cancellation import cancel_all
from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel
from evworker.broker.deadletters.counting import Look, look_at
from evworker.broker.deadletters.gathering import Gathering
from evworker.broker.errors import BrokerError, QueueNotFoundError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from evworker.broker.connection import Connection

SETTLE_TIMEOUT_S = 2.0
_SETTLED_WITHIN_S = 30.0

_MOST_AHEAD = 1_000
_FIRST_AHEAD = 50
_FEWEST_AHEAD = 10
_BYTES_AHEAD = 16 * 1024 * 1024

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
        self._others = 0
        self._connection = connection
        self._queue = queue
        self._most_held = most_held
        self._holders: dict[int, _Holder] = {}
        """By the number of their channel; only the last one takes letters."""
        self._holder: _Holder
        self._arrived: deque[DeliveredMessage] = deque()
        self._arrival = asyncio.Event()
        self._round: _Round | None = None
        self._subscribed: _Round | None = None
        self._ahead = _FIRST_AHEAD
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
        while True:
            if self._round is not None and self._round.task.done():
                await self._round_ended()
            if self._round is None and len(self._arrived) <= self._ahead // 2 and self._has_more:
                self._start_round()
            if self._arrived:
                return self._arrived.popleft()
            if self._round is None:
                return None
            self._arrival.clear()
            await self._arrival.wait()

    def remove(self, message: DeliveredMessage) -> None:
        """Take the letter out of its queue for good."""
        holder, tag = self._holders[message.channel.number], tag_of(message)
        if self._subscribed is not None and holder.held.get(tag) == self._subscribed.consumer:
            # An ack would let the subscription bring more than the round is to have.
            self._subscribed.acks.append(tag)
        else:
            holder.remove(tag)

    async def removed(self) -> None:
        """Wait until the broker was told of all that was removed."""
        while self._round is not None:
            await self._round_ended()
        for holder in self._holders.values():
            await holder.out.written()

    async def count(self) -> int:
        """How many letters are ready: neither held here nor by anybody else."""
        with self._errors():
            return await self._count()

    async def _look(self) -> Look:
        return await look_at(self._holder.channel, self._queue)

    async def _count(self) -> int:
        return (await self._look()).ready

    async def finish(self) -> None:
        """Put all that is held back where it was; what was removed is gone when it returns.

        A quorum queue keeps what was handed back in a line of its own, before what was never taken.
        So that nobody changes places, that line is first taken to its end.
        """
        with self._errors():
            await self._hand_back()
            await self._settled()

    async def _hand_back(self) -> None:
        await self.removed()
        while self._last_was_returned and self._has_more and self._holds_any():
            self._arrived.clear()
            self._start_round()
            await self._round_ended()
        await self.removed()
        alone, ready = True, await self._count() if self._holds_any() else 0
        for holder in self._holders.values():
            for batches in _in_groups(list(_batches(holder.held.items()))):
                for last, size in batches:
                    # Nacks: closing the channel would count as a failed delivery from 4.3 on.
                    await holder.channel.basic_nack(last, multiple=True, wait=False)
                    ready += size
                if alone:
                    alone, ready = await self._are_back(ready)

    async def _settled(self) -> None:
        """Wait until the queue has done all that it was told.

        The broker's channel keeps what a busy quorum queue can't take yet, and forgets it when it
        is closed: letters that were removed would come back.
        """
        pause_s = 0.002
        with suppress(TimeoutError):
            # Somebody else who began to read meanwhile counts, too, and is not waited for.
            async with asyncio.timeout(_SETTLED_WITHIN_S):
                while self.arrivals and (await self._look()).subscriptions > self._others:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, 0.1)

    async def close(self) -> None:
        if self._round is not None:
            await cancel_all(self._round.task)
        for holder in self._holders.values():
            await close_channel(holder.channel)

    def _errors(self) -> AbstractContextManager[None]:
        return broker_errors(f"read from {self._queue!r}")

    @property
    def _has_more(self) -> bool:
        return self.arrivals < self.waiting and not self._ended

    def _holds_any(self) -> bool:
        return any(holder.held for holder in self._holders.values())

    async def _are_back(self, expected: int) -> tuple[bool, int]:
        # A queue takes letters back in its own time, and may answer a later request before. The
        # wait ends without them where somebody else takes letters, too.
        ready = 0
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while True:
                    ready = await self._count()
                    if ready >= expected:
                        return True, ready
                    await asyncio.sleep(0.002)
        except TimeoutError:
            return False, ready

    def _start_round(self) -> None:
        self._round = _Round(min(self._ahead, self.waiting - self.arrivals))
        self._round.task = asyncio.create_task(self._take(self._round))
        self._round.task.add_done_callback(self._wake)

    async def _round_ended(self) -> None:
        """Wait for the end of the round; raises what ended it."""
        if self._round is not None:
            ending = self._round
            await asyncio.wait([ending.task])
            self._round = None
            self._ahead = ending.next_size()
            with self._errors():
                ending.task.result()

    async def _take(self, taken: _Round) -> None:
        """Take as many letters as the round is to have, or as there are.

        A subscription is only ended once it has brought all that it may: a quorum queue takes back
        what is still on its way then, and not in order.
        """
        if self._most_held is not None and len(self._holder.held) >= self._most_held:
            await self._open_holder()
        self._subscribed, holder = taken, self._holder
        await holder.channel.basic_qos(prefetch_count=taken.wanted, timeout=RPC_TIMEOUT_S)
        await holder.channel.basic_consume(
            self._queue,
            partial(self._on_message, taken),
            consumer_tag=taken.consumer,
            timeout=RPC_TIMEOUT_S,
        )
        await self._fill(taken)
        # Never with nowait: aiormq would drop the deliveries that are on their way, unsettled.
        await holder.channel.basic_cancel(taken.consumer, timeout=RPC_TIMEOUT_S)
        self._subscribed = None
        for tag in taken.acks:
            holder.remove(tag)

    async def _fill(self, taken: _Round) -> None:
        deadline = asyncio.get_running_loop().time() + _PATIENCE_S
        while not taken.is_full.is_set():
            self._raise_if_gone()
            arrived = taken.arrived
            try:
                async with asyncio.timeout(_QUIET_S):
                    await taken.is_full.wait()
            except TimeoutError:
                if taken.arrived == arrived and await self._count() == 0:
                    self._ended = True  # somebody else has taken the rest
                    return
                if asyncio.get_running_loop().time() > deadline and taken.arrived == arrived:
                    raise BrokerError(
                        f"{self._queue!r} has letters and gives none: does somebody else "
                        "consume it?"
                    ) from None

    async def _open_holder(self) -> None:
        channel = await self._connection.channel()
        self._holder = self._holders[channel.number] = _Holder(channel)
        channel.closing.add_done_callback(self._on_close)
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)

    def _raise_if_gone(self) -> None:
        if self._deleted:
            raise BrokerError(f"the queue {self._queue!r} was deleted or moved meanwhile")
        for holder in self._holders.values():
            if holder.channel.is_closed:
                closing = holder.channel.closing
                raise (None if closing.cancelled() else closing.exception()) or BrokerError(
                    "the connection was lost"
                )

    async def _on_message(self, taken: _Round, message: DeliveredMessage) -> None:
        self._holders[message.channel.number].held[tag_of(message)] = taken.consumer
        self.arrivals += 1
        self._last_was_returned = bool(message.redelivered)
        self._arrived.append(message)
        self._arrival.set()
        taken.add(message)

    def _on_cancel(self, _frame: spec.Basic.Cancel) -> None:
        self._deleted = True
        self._interrupt()

    def _on_close(self, _closing: object) -> None:
        self._interrupt()

    def _interrupt(self) -> None:
        if self._round is not None:
            self._round.is_full.set()

    def _wake(self, _round: object) -> None:
        self._arrival.set()


class _Round:
    """One subscription, which brings as many letters as it was made for."""

    task: asyncio.Task[None]

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.consumer = uuid4().hex
        self.arrived = 0
        self.acks: list[int] = []
        """The tags of what was removed while letters were still coming."""
        self.is_full = asyncio.Event()
        self._bytes = 0

    def add(self, message: DeliveredMessage) -> None:
        self.arrived += 1
        self._bytes += _size_of(message)
        if self.arrived == self.wanted:
            self.is_full.set()

    def next_size(self) -> int:
        """How many of such letters may be in memory at once."""
        average = self._bytes // self.arrived if self.arrived else _BYTES_AHEAD
        return max(_FEWEST_AHEAD, min(_MOST_AHEAD, _BYTES_AHEAD // max(1, average)))


class _Holder:
    """A channel, and the tags of what is held on it, in order, each with its subscription."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.out = Gathering(channel)
        self.held: dict[int, str] = {}

    def remove(self, tag: int) -> None:
        ack = spec.Basic.Ack(delivery_tag=tag, multiple=False)
        self.out.send(pamqp.frame.marshal(ack, self.channel.number))
        self.held.pop(tag, None)


def tag_of(message: DeliveredMessage) -> int:
    return cast("int", cast("spec.Basic.Deliver", message.delivery).delivery_tag)


def _size_of(message: DeliveredMessage) -> int:
    """About what it takes in memory."""
    headers = message.header.properties.headers or {}
    texts = sum(len(value) for value in headers.values() if isinstance(value, str | bytes))
    return len(message.body) + texts + 2_000


def _batches(held: Iterable[tuple[int, str]]) -> Iterable[tuple[int, int]]:
    """The last tag and the size of each batch, none of which spans two subscriptions."""
    size, last, current = 0, 0, ""
    for tag, consumer in held:
        if size and (size == _IN_ORDER or consumer != current):
            yield last, size
            size = 0
        size, last, current = size + 1, tag, consumer
    if size:
        yield last, size


def _in_groups(batches: list[tuple[int, int]]) -> Iterable[list[tuple[int, int]]]:
    """The first goes alone: acks may be on their way before it."""
    yield batches[:1]
    for start in range(1, len(batches), _BATCHES_AT_ONCE):
        yield batches[start : start + _BATCHES_AT_ONCE]
