"""The intake: reads the deliveries of one queue from one channel, and settles them.

This is the hot path's end towards the broker, behind one small interface. aio-pika's consumer is
not used: it cancels running callbacks when their channel closes, and builds more objects for each
message than a worker needs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

import aiormq.exceptions
from aiormq import spec

from evworker.broker.channels import (
    RPC_TIMEOUT_S,
    broker_errors,
    close_channel,
    reason_of,
    written,
)
from evworker.broker.errors import BrokerError, QueueNotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiormq.abc import AbstractChannel, DeliveredMessage
    from pamqp.common import FieldValue

    from evworker.broker.connection import Connection


class Delivery:
    """One arrival of one message. It ends acked or handed back, or with its channel."""

    __slots__ = (
        "_channel",
        "_tag",
        "body",
        "exchange",
        "properties",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(self, message: DeliveredMessage, queue: str, channel: AbstractChannel) -> None:
        self.queue = queue
        self.body: bytes = message.body
        self.properties: spec.Basic.Properties = message.header.properties
        self.exchange: str = message.exchange or ""
        self.routing_key: str = message.routing_key or ""
        self.redelivered: bool = bool(message.redelivered)
        # Only basic.deliver and basic.get-ok get here, and they have a tag.
        self._tag = cast("int", cast("spec.Basic.Deliver", message.delivery).delivery_tag)
        self._channel = channel

    @property
    def headers(self) -> Mapping[str, FieldValue]:
        """The message's headers as they came."""
        return self.properties.headers or {}

    @property
    def origin_routing_key(self) -> str:
        """The routing key that it was published with, before any retry."""
        origin = self.headers.get("evw-origin-routing-key")
        return origin if isinstance(origin, str) else self.routing_key

    @property
    def returns(self) -> int | None:
        """How often the message came back to its queue unsettled; None where nobody counts.

        Quorum queues count, before 4.3 hand-backs as well; classic ones only tell that it happened
        (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
        """
        count = self.headers.get("x-delivery-count")
        if isinstance(count, int):
            return count
        return None if self.redelivered else 0

    @property
    def is_live(self) -> bool:
        """Whether it can still be settled. If not, the broker delivers the message again."""
        return not self._channel.is_closed

    async def ack(self) -> bool:
        """Tell the broker that the message is done with; False when its channel is gone."""
        return await self._settle(self._channel.basic_ack(self._tag, wait=False))

    async def hand_back(self) -> bool:
        """Give the message back unharmed, to be delivered again; False when its channel is gone.

        A nack and not a reject: from 4.3 on only the latter counts as a failed delivery
        (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
        """
        return await self._settle(self._channel.basic_nack(self._tag, requeue=True, wait=False))

    async def reject(self) -> bool:
        """Have the broker itself dead-letter the message; False when its channel is gone.

        Safe only where the queue dead-letters at least once.
        """
        return await self._settle(self._channel.basic_reject(self._tag, requeue=False, wait=False))

    async def _settle(self, settlement: Awaitable[None]) -> bool:
        try:
            await written(self._channel, settlement)
        except _GONE:
            return False
        return True


async def take_one(channel: AbstractChannel, queue: str) -> Delivery | None:
    """Take the first message of a queue, if there is one; raises BrokerError."""
    with broker_errors(f"take from {queue!r}"):
        message = await channel.basic_get(queue, timeout=RPC_TIMEOUT_S)
    if not isinstance(message.delivery, spec.Basic.GetOk):
        return None
    return Delivery(message, queue, channel)


class Intake:
    """Subscriptions to one queue, one after the other, on one channel of its own.

    `receive` is called in the event loop with each delivery, in order; it must not block or raise.
    """

    def __init__(
        self, channel: AbstractChannel, queue: str, receive: Callable[[Delivery], None]
    ) -> None:
        self.queue = queue
        self._channel = channel
        self._receive = receive
        self._tag = ""
        self._cancelled = asyncio.Event()

    @classmethod
    async def open(
        cls,
        connection: Connection,
        queue: str,
        *,
        prefetch: int,
        receive: Callable[[Delivery], None],
    ) -> Self:
        """Subscribe. Waits for the connection; raises QueueNotFoundError or BrokerError."""
        with broker_errors(f"consume from {queue!r}"):
            channel = await connection.channel()
        intake = cls(channel, queue, receive)
        channel.on_consumer_cancel_callbacks.add(intake._on_cancel)
        await intake.start(prefetch=prefetch)
        return intake

    async def start(self, *, prefetch: int) -> None:
        """Subscribe again after a stop; what came before stays as it is. Raises as `open` does."""
        with broker_errors(f"consume from {self.queue!r}"):
            try:
                # It holds for the subscription that begins now, and not for the whole channel
                # (https://www.rabbitmq.com/docs/consumer-prefetch).
                await self._channel.basic_qos(prefetch_count=prefetch, timeout=RPC_TIMEOUT_S)
                consuming = await self._channel.basic_consume(
                    self.queue, self._on_message, timeout=RPC_TIMEOUT_S
                )
            except aiormq.exceptions.ChannelNotFoundEntity as error:
                raise QueueNotFoundError(
                    f"there is no queue {self.queue!r}, and this user may not declare it; "
                    "someone who may must run `evworker topology apply`"
                ) from error
            except BaseException:
                # A subscription that nobody holds would swallow deliveries.
                await close_channel(self._channel)
                raise
        self._tag = str(consuming.consumer_tag)

    async def ended(self) -> str:
        """Wait until no more deliveries can come, and say why."""
        cancelled = asyncio.ensure_future(self._cancelled.wait())
        closing = self._channel.closing
        try:
            await asyncio.wait([cancelled, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
        if not closing.done():
            return "the broker cancelled the consumer (its queue was deleted or moved)"
        error = None if closing.cancelled() else closing.exception()
        return reason_of(error) if error else "the channel was closed"

    async def stop(self) -> None:
        """Ask for no more deliveries: none come after this; those that came can be settled."""
        # Never with nowait: aiormq would drop the deliveries that are on their way, unsettled.
        with suppress(BrokerError), broker_errors("stop consuming"):
            await self._channel.basic_cancel(self._tag, timeout=RPC_TIMEOUT_S)

    async def close(self) -> None:
        """Close the channel, after the settlements on it; the unsettled go back to the queue."""
        await close_channel(self._channel)

    async def _on_message(self, message: DeliveredMessage) -> None:
        self._receive(Delivery(message, self.queue, self._channel))

    def _on_cancel(self, _frame: spec.Basic.Cancel) -> None:
        self._cancelled.set()  # ours: no other consumer is on this channel


_GONE = (aiormq.exceptions.ChannelInvalidStateError, aiormq.exceptions.AMQPError, OSError)
