"""From an outcome to the broker: each outcome has one clause, and ends the delivery once.

What failed is published to its next queue with a confirm, and only then acked: a crash in between
makes a duplicate, never a loss. AMQP's own dead-lettering can carry neither the failure nor a
chosen delay, and loses messages whose target is missing.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from aiormq import spec

from evworker.broker import (
    BrokerError,
    Failure,
    HeadersError,
    MessageTooLargeError,
    TopologyMismatchError,
    UnroutableError,
    format_duration,
)
from evworker.broker.backoff import backoff_s
from evworker.broker.cancellation import raise_if_cancelled
from evworker.broker.declare import apply_topology
from evworker.broker.envelope import new_id
from evworker.broker.failure import FAILURE_HEADERS
from evworker.broker.headers import fit_into_frame, kept_headers
from evworker.broker.properties import PERSISTENT, SHORT_STRING_BYTES
from evworker.broker.topology import Topology, retry_queue_of
from evworker.workers.outcome import (
    Counts,
    DeadLettered,
    Discarded,
    Duplicate,
    HandedBack,
    Outcome,
    Paused,
    Quarantined,
    Retried,
    Succeeded,
)

if TYPE_CHECKING:
    from evworker.broker import Connection, Publisher, Queue
    from evworker.broker.delivery import Delivery

log = structlog.get_logger("evworker.settlement")


class Settlement:
    """Ends the deliveries of one queue.

    `dead_letters` and `quarantine` are the queues beside it. `retry_queues` holds, by delay in
    seconds, the queues in which its messages wait; one for a delay that a handler asks for is added
    when it is first needed.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        dead_letters: Queue,
        quarantine: Queue,
        delays_s: set[float],
        publisher: Publisher,
        connection: Connection,
        counts: Counts,
    ) -> None:
        self.retry_queues = {delay_s: retry_queue_of(queue.name, delay_s) for delay_s in delays_s}
        self._queue = queue
        self._dead_letters = dead_letters
        self._quarantine = quarantine
        self._publisher = publisher
        self._connection = connection
        self._counts = counts
        self._log = log.bind()  # once: the module's is bound for each line

    def settle_at_once(self, delivery: Delivery, outcome: Outcome) -> bool:
        """End the delivery as `settle` does, if that needs no waiting; whether it did."""
        if isinstance(outcome, Succeeded) and delivery.ack_at_once():
            self._counts.handled += 1
            self._log.debug("handled")
            return True
        return False

    async def settle(  # noqa: C901, PLR0912 - a clause for each outcome
        self, delivery: Delivery, outcome: Outcome, *, message_id: str | None
    ) -> None:
        """End the delivery. `message_id` is the event's id, for messages that came without one.

        Returns once it is settled, or once its channel is gone, when the broker delivers it again.
        """
        match outcome:
            case Succeeded():
                if await delivery.ack():
                    self._counts.handled += 1
                    self._log.debug("handled")
                else:
                    log.warning("handled, but its channel is gone: it will be delivered again")
            case Duplicate():
                if await delivery.ack():
                    self._counts.duplicates += 1
                    log.info("a duplicate: it was applied before")
            case Retried(delay_s, failure):
                queue = await self._retry_queue(delivery, delay_s)
                if queue and await self._put_into(queue, delivery, failure, message_id):
                    self._counts.retried += 1
                    log.warning(
                        "failed, trying again",
                        delay=format_duration(delay_s),
                        error_type=failure.error_type,
                        error=failure.error_message,
                    )
            case DeadLettered(failure=failure):
                if await self._put_into(self._dead_letters, delivery, failure, message_id):
                    self._counts.dead_letter(failure.reason)
                    log.error(
                        "dead-lettered",
                        reason=failure.reason,
                        dead_letter_queue=self._dead_letters.name,
                        error_type=failure.error_type,
                        error=failure.error_message,
                        exception=failure.traceback if failure.attempts else None,
                    )
            case Discarded(why):
                if await delivery.ack():
                    self._counts.discarded += 1
                    log.info("discarded", why=why)
            case Quarantined(returns):
                if await self._put_into(self._quarantine, delivery, None, message_id):
                    self._counts.quarantined += 1
                    log.warning("came back unsettled, to be run alone", returns=returns)
            case HandedBack() | Paused():
                # Handed back it would count as returned, and come before all others again.
                if not isinstance(outcome, Paused) or not await self._put_into(
                    self._queue, delivery, None, message_id, insist=False
                ):
                    await delivery.hand_back()
                self._counts.handed_back += 1

    async def _retry_queue(self, delivery: Delivery, delay_s: float) -> Queue | None:
        """Where to wait for so long; None when the delivery's channel is gone."""
        if delay_s not in self.retry_queues:
            queue = retry_queue_of(self._queue.name, delay_s)
            if await self._declared(queue, delivery):
                self.retry_queues[delay_s] = queue
            elif delivery.is_live:
                return self._nearest(delay_s)
            else:
                return None
        return self.retry_queues[delay_s]

    def _nearest(self, delay_s: float) -> Queue:
        """Where its own queue can't be: the shortest wait that is long enough, or the longest.

        Only the latter shortens a wait, and only one that a handler asked for.
        """
        known = sorted(self.retry_queues)
        nearest = next((known_s for known_s in known if known_s >= delay_s), known[-1])
        log.warning(
            "can't declare a queue for this wait, using another",
            asked=format_duration(delay_s),
            delay=format_duration(nearest),
            shortened=nearest < delay_s,
        )
        return self.retry_queues[nearest]

    async def _put_into(
        self,
        queue: Queue,
        delivery: Delivery,
        failure: Failure | None,
        message_id: str | None,
        *,
        insist: bool = True,
    ) -> bool:
        """Publish the message to its next queue and ack it here; False when its channel is gone.

        Tried again until it succeeds; if not to `insist`, False when it can't be published.
        """
        failure = failure or _unchanged(delivery)
        properties = _properties(delivery, failure, message_id)
        attempt = 0
        while delivery.is_live:
            try:
                await self._publisher.send(
                    delivery.body, properties, exchange="", routing_key=queue.name
                )
                return await delivery.ack()
            except HeadersError as error:
                # Something in them can be read and not be written; the failure matters more.
                log.warning("put aside without its own headers", error=str(error))
                properties = _bare_properties(properties, failure)
            except BrokerError as error:
                if not insist:
                    log.warning("can't put it aside", to=queue.name, error=str(error))
                    return False
                if isinstance(error, MessageTooLargeError) and self._may_reject(delivery):
                    await self._reject(delivery, failure, error)
                    return False
                attempt += 1
                log.warning("can't put it aside, trying again", to=queue.name, error=str(error))
                await asyncio.sleep(backoff_s(attempt))
                if isinstance(error, UnroutableError):
                    await self._declared(queue, delivery)
            raise_if_cancelled()
        return False

    def _may_reject(self, delivery: Delivery) -> bool:
        """Whether what is rejected is certain to become a dead letter: not in a classic queue."""
        known = (self._queue, self._quarantine)
        arguments = next(queue.arguments for queue in known if queue.name == delivery.queue)
        return arguments.get("x-dead-letter-strategy") == "at-least-once"

    async def _reject(self, delivery: Delivery, failure: Failure, error: BrokerError) -> None:
        """Have the broker move what it would not take again: it came before its limit was lowered.

        The failure is not on the letter then, and in the log only.
        """
        if await delivery.reject():
            self._counts.dead_letter(failure.reason)
            log.error(
                "dead-lettered as it came, too large to be published again",
                reason=failure.reason,
                dead_letter_queue=self._dead_letters.name,
                error_type=failure.error_type,
                error=failure.error_message,
                limit=str(error),
            )

    async def _declared(self, queue: Queue, delivery: Delivery) -> bool:
        """Declare a queue of ours; False when that can't be, or the channel is gone."""
        attempt = 0
        while delivery.is_live:
            try:
                return not await apply_topology(self._connection, Topology(queues=(queue,)))
            except TopologyMismatchError as error:
                log.warning("there is another queue of that name", to=queue.name, error=str(error))
                return False
            except BrokerError as error:
                attempt += 1
                log.warning("can't declare, trying again", to=queue.name, error=str(error))
                await asyncio.sleep(backoff_s(attempt))
            raise_if_cancelled()
        return False


def _unchanged(delivery: Delivery) -> Failure:
    """What the headers tell so far, with the origin that a move would otherwise hide."""
    failure = Failure.from_headers(delivery.headers)
    if failure.origin_routing_key is not None:
        return failure
    return replace(
        failure, origin_exchange=delivery.exchange, origin_routing_key=delivery.routing_key
    )


def _properties(
    delivery: Delivery, failure: Failure, message_id: str | None
) -> spec.Basic.Properties:
    """The message's own properties, less what would make the broker refuse or expire the copy."""
    old = delivery.properties
    headers = {
        name: value
        for name, value in kept_headers(delivery.headers).items()
        if name not in FAILURE_HEADERS
    }
    if old.user_id:
        # The broker checks user_id against the login that publishes, and closes the channel.
        headers["evw-user-id"] = old.user_id
    return spec.Basic.Properties(
        content_type=_short(old.content_type),
        content_encoding=_short(old.content_encoding),
        headers=fit_into_frame({**headers, **failure.to_headers()}),
        delivery_mode=PERSISTENT,
        priority=old.priority,
        correlation_id=_short(old.correlation_id),
        reply_to=_short(old.reply_to),
        message_id=_short(old.message_id) or _short(message_id) or new_id(),
        timestamp=old.timestamp,
        message_type=_short(old.message_type),
        app_id=_short(old.app_id),
    )


def _bare_properties(properties: spec.Basic.Properties, failure: Failure) -> spec.Basic.Properties:
    return spec.Basic.Properties(
        content_type=properties.content_type,
        headers=failure.to_headers(),
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        message_id=properties.message_id,
    )


def _short(text: str | None) -> str | None:
    """None for what AMQP could not carry: an event's id may be longer than a message's."""
    return text if text and len(text.encode("utf-8", "replace")) <= SHORT_STRING_BYTES else None
