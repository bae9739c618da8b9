"""Queues: what waits in them, for how long, and whose turn it is. They know of no wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pamqp.common import FieldTable

from evworker.broker.embedded.arguments import QueueSettings
from evworker.broker.embedded.clock import Clock, Timer
from evworker.broker.embedded.deadlettering import (
    DELIVERY_LIMIT,
    EXPIRED,
    MAX_LENGTH,
    REJECTED,
)
from evworker.broker.embedded.message import Entry, Message
from evworker.broker.embedded.ready import ClassicReady, QuorumReady, Ready
from evworker.broker.embedded.refusals import Code, Refusal

DEAD_LETTERS_AGAIN_S = 1.0
"""When a dead letter that found no queue is tried again. RabbitMQ takes three minutes."""

_SOON_S = 0.001  # a timer may ring a moment before its time
_ROOM_AGAIN = 0.8  # of its limit: when a quorum queue that was full takes messages again


class Taker(Protocol):
    """Who gives deliveries to consumers: a channel."""

    def can_take(self, consumer: Consumer) -> bool: ...
    def deliver(self, consumer: Consumer, entry: Entry) -> None: ...
    def cancelled(self, consumer: Consumer) -> None:
        """The consumer is no more, and did not ask for that."""


@dataclass(eq=False)
class Consumer:
    """A subscription to one queue."""

    tag: str
    queue: Queue
    taker: Taker
    no_ack: bool
    exclusive: bool
    priority: int
    prefetch: int
    """How many deliveries it may have unsettled; 0 is any number."""
    unsettled: int = 0


@dataclass(frozen=True)
class QueueOwner:
    """What a queue asks of the virtual host that it is in."""

    dead_letter: Callable[[Queue, Message, str], bool]
    """Sends it on for this reason; whether a queue has it."""
    delete: Callable[[Queue], object]
    clock: Clock


class Queue:
    """One queue, and its consumers."""

    def __init__(
        self,
        name: str,
        settings: QueueSettings,
        owner: QueueOwner,
        *,
        title: str,
        arguments: FieldTable,
        durable: bool = True,
        auto_delete: bool = False,
        exclusive_to: object = None,
    ) -> None:
        self.name = name
        self.title = title
        """The queue with its virtual host, as refusals name it."""
        self.settings = settings
        self.arguments = arguments
        self.durable = durable
        self.auto_delete = auto_delete
        self.exclusive_to = exclusive_to
        self.consumers: list[Consumer] = []
        """In the order of their turns."""
        self.ready: Ready = (
            QuorumReady() if settings.is_quorum else ClassicReady(settings.max_priority)
        )
        self.deleted = False
        self._owner = owner
        self._clock = owner.clock
        self._active: Consumer | None = None
        self._arrived = 0
        self._is_full = False
        self._may_expire = False
        self._homeless: list[tuple[Message, str]] = []
        self._expiry: Timer | None = None
        self._disuse: Timer | None = None
        self._retry: Timer | None = None
        self.used()

    # Messages

    def publish(self, message: Message) -> bool:
        """Take the message; False if the queue is full and refuses what it has no room for."""
        self._arrived += 1
        entry = Entry(message, self._arrived, self._expires_at(message))
        if self.settings.rejects_publishes and self._refuses(entry):
            if self.settings.dead_letters_rejected:
                self._die(entry, MAX_LENGTH)
            return False
        self.ready.push(entry)
        if self.consumers:
            self._hand_out()
        self._keep_to_limits()
        return True

    def get(self) -> Entry | None:
        """The next message, for somebody who is no consumer."""
        self.used()
        self._expire()
        entry = self.ready.pop() if len(self.ready) else None
        self._expire()
        return entry

    def give_back(self, entries: Iterable[Entry]) -> None:
        """Put back what was delivered, in the order in which it is given back."""
        if self.deleted:
            return
        limit = self.settings.delivery_limit
        kept = []
        for entry in entries:
            entry.returned += 1
            if limit is not None and entry.returned > limit:
                self._die(entry, DELIVERY_LIMIT)
            else:
                kept.append(entry)
        self.ready.give_back(kept)
        self._keep_to_limits()
        self.dispatch()

    def reject(self, entry: Entry) -> None:
        """A consumer wants no more of it."""
        if not self.deleted:
            self._die(entry, REJECTED)

    def purge(self) -> int:
        """Forget what is ready; how many these were."""
        count = len(self.ready)
        while len(self.ready):
            self.ready.pop()
        return count

    def close(self) -> None:
        """Be no more: consumers are told."""
        self.deleted = True
        for timer in (self._expiry, self._disuse, self._retry):
            if timer is not None:
                timer.cancel()
        self.cancel_consumers()

    # Consumers

    def add(self, consumer: Consumer) -> None:
        """Raises Refusal if one of them wants the queue for itself."""
        alone = self.settings.single_active_consumer and not self.settings.is_quorum
        if any(each.exclusive for each in self.consumers) or (
            consumer.exclusive and (self.consumers or alone)
        ):
            raise Refusal(Code.ACCESS_REFUSED, f"{self.title} in exclusive use")
        self.consumers.append(consumer)
        self.used()

    def remove(self, consumer: Consumer) -> None:
        """Who is next is served when `dispatch` is called."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        if self._active is consumer:
            self._active = None
        self.used()
        if self.auto_delete and not self.consumers:
            self._owner.delete(self)

    def cancel_consumers(self) -> None:
        """End all subscriptions, and tell those who have them."""
        gone, self.consumers, self._active = self.consumers, [], None
        for consumer in gone:
            consumer.taker.cancelled(consumer)

    def dispatch(self) -> None:
        """Deliver what is ready to whom it is the turn of."""
        self._expire()
        self._hand_out()

    def used(self) -> None:
        """Somebody takes an interest: what expires in disuse begins again to wait."""
        if self._disuse is not None:
            self._disuse.cancel()
            self._disuse = None
        if self.settings.expires_s is not None and not self.consumers:
            self._disuse = self._clock.call_later(
                self.settings.expires_s, partial(self._owner.delete, self)
            )

    def _hand_out(self) -> None:
        while len(self.ready) and (consumer := self._whose_turn()) is not None:
            entry = self.ready.pop()
            self.consumers.remove(consumer)
            self.consumers.append(consumer)
            consumer.taker.deliver(consumer, entry)

    def _whose_turn(self) -> Consumer | None:
        if self.settings.single_active_consumer:
            if self._active is None and self.consumers:
                self._active = self.consumers[0]
            able = self._active is not None and self._active.taker.can_take(self._active)
            return self._active if able else None
        chosen: Consumer | None = None
        for consumer in self.consumers:
            if (chosen is None or consumer.priority > chosen.priority) and (
                consumer.taker.can_take(consumer)
            ):
                chosen = consumer
        return chosen

    # Limits

    def _refuses(self, entry: Entry) -> bool:
        if not self.settings.is_quorum:
            return self._exceeds(1, entry.size) and self._whose_turn() is None
        # A quorum queue notices that it is full when it is, and that it has room when it has some.
        if self._is_full and not self._exceeds(of=_ROOM_AGAIN):
            self._is_full = False
        return self._is_full

    def _exceeds(self, more: int = 0, more_bytes: int = 0, *, of: float = 1.0) -> bool:
        count, size = self.settings.max_length, self.settings.max_length_bytes
        waiting = len(self.ready) + len(self._homeless) + more if count is not None else 0
        return (count is not None and waiting > count * of) or (
            size is not None and self.ready.size + more_bytes > size * of
        )

    def _keep_to_limits(self) -> None:
        if self.settings.rejects_publishes:
            self._is_full = self._is_full or self._exceeds()
        else:
            while len(self.ready) and self._exceeds():
                self._die(self.ready.pop(), MAX_LENGTH)
        self._expire()

    # Time

    def _expires_at(self, message: Message) -> float | None:
        ttls = [ttl for ttl in (self.settings.message_ttl_s, message.ttl_s) if ttl is not None]
        if not ttls:
            return None
        self._may_expire = True
        return self._clock.time() + min(ttls)

    def _expire(self) -> None:
        """Let those die whose time is over, and wake up again when the next one's is."""
        if not self._may_expire:
            return
        now = self._clock.time() + _SOON_S
        while over := [
            entry
            for entry in self.ready.fronts()
            if entry.expires_at is not None and entry.expires_at <= now
        ]:
            for entry in over:
                self.ready.remove_front(entry)
                self._die(entry, EXPIRED)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        times = [each.expires_at for each in self.ready.fronts() if each.expires_at]
        if times and not self.deleted:
            self._expiry = self._clock.call_at(min(times), self._expire)

    # Death

    def _die(self, entry: Entry, reason: str) -> None:
        if self.settings.dead_letter_exchange is None:
            return
        routed = self._owner.dead_letter(self, entry.message, reason)
        if not routed and self.settings.at_least_once:
            self._homeless.append((entry.message, reason))
            self._try_again_later()

    def _try_again_later(self) -> None:
        if self._retry is None and not self.deleted:
            self._retry = self._clock.call_later(DEAD_LETTERS_AGAIN_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        waiting, self._homeless = self._homeless, []
        self._homeless = [
            (message, reason)
            for message, reason in waiting
            if not self._owner.dead_letter(self, message, reason)
        ]
        if self._homeless:
            self._try_again_later()
