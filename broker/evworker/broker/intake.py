"""The intake: reads the deliveries of one queue from one channel.

This is the hot path's end towards the broker, behind one small interface. Where the connection has
a tap, deliveries are read off that and settled through it; else aiormq reads and settles them.
aio-pika's consumer is not used either way: it cancels running callbacks when their channel closes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import aiormq.exceptions
from aiormq import spec

from evworker.broker.channels import (
    RPC_TIMEOUT_S,
    broker_errors,
    close_channel,
    reason_of,
    written,
)
from evworker.broker.delivery import Delivery
from evworker.broker.errors import BrokerError, QueueNotFoundError
from evworker.broker.fastlane.consuming import TappedDeliveries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiormq.abc import AbstractChannel, DeliveredMessage

    from evworker.broker.connection import Connection


class _LibraryChannel:
    """Settles on a channel by aiormq's own means."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel

    @property
    def is_live(self) -> bool:
        return not self._channel.is_closed

    def ack_at_once(self, tag: int) -> bool:  # noqa: ARG002 - the protocol's
        return False

    async def ack(self, tag: int) -> bool:
        return await self._settle(self._channel.basic_ack(tag, wait=False))

    async def hand_back(self, tag: int) -> bool:
        return await self._settle(self._channel.basic_nack(tag, requeue=True, wait=False))

    async def reject(self, tag: int) -> bool:
        return await self._settle(self._channel.basic_reject(tag, requeue=False, wait=False))

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
    return Delivery.of_message(message, queue, _LibraryChannel(channel))


class Intake:
    """Subscriptions to one queue, one after the other, on one channel of its own.

    `receive` is called in the event loop with each delivery, in order; it must not block or raise.
    """

    def __init__(
        self, channel: AbstractChannel, queue: str, receive: Callable[[Delivery], None]
    ) -> None:
        self.queue = queue
        self._channel = channel
        self._settling = _LibraryChannel(channel)
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
            tap = connection.tap_of(channel)
        intake = cls(channel, queue, receive)
        if tap is not None:
            TappedDeliveries(tap, channel.number, queue, receive)
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
        # Shielded: it would close the channel if cancelled, and the acks of what runs were void.
        ending = asyncio.create_task(self._channel.basic_cancel(self._tag, timeout=RPC_TIMEOUT_S))
        ending.add_done_callback(_seen)
        with suppress(BrokerError), broker_errors("stop consuming"):
            await asyncio.shield(ending)

    async def close(self) -> None:
        """Close the channel, after the settlements on it; the unsettled go back to the queue."""
        await close_channel(self._channel)

    async def _on_message(self, message: DeliveredMessage) -> None:
        # Never called where there is a tap.
        self._receive(Delivery.of_message(message, self.queue, self._settling))

    def _on_cancel(self, _frame: spec.Basic.Cancel) -> None:
        self._cancelled.set()  # ours: no other consumer is on this channel


def _seen(ending: asyncio.Task[spec.Basic.CancelOk]) -> None:
    if not ending.cancelled():
        ending.exception()  # so that asyncio does not complain where nobody awaits it any more


_GONE = (aiormq.exceptions.ChannelInvalidStateError, aiormq.exceptions.AMQPError, OSError)
