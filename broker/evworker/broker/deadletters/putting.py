"""Putting messages into one queue: in order, each confirmed, some hundred on their way at once."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import aiormq.exceptions
import pamqp.frame
from aiormq import spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from evworker.broker.channels import (
    RPC_TIMEOUT_S,
    broker_errors,
    close_channel,
    is_channel_error,
    reason_of,
)
from evworker.broker.deadletters.gathering import Gathering
from evworker.broker.errors import (
    BrokerError,
    ConnectionLostError,
    HeadersError,
    MessageTooLargeError,
    PublishError,
    PublishNackedError,
    PublishTimeoutError,
    QueueNotFoundError,
    UnroutableError,
)

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker.connection import Connection

T = TypeVar("T")

MOST_AT_ONCE = 300
_BYTES_AT_ONCE = 16 * 1024 * 1024

CONFIRM_TIMEOUT_S = 30.0

_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, struct.error)


@asynccontextmanager
async def putting(
    connection: Connection, queue: str, confirmed: Callable[[T], None]
) -> AsyncIterator[Putting[T]]:
    """Put messages into the queue; at the end all confirms that are still out are awaited.

    `confirmed` is called once the broker has a message, with what it was put with; it must not
    raise. Raises QueueNotFoundError, or BrokerError.
    """
    with broker_errors(f"write to {queue!r}"):
        channel = await _open(connection, queue)
    opened = Putting(channel, queue, connection.version.max_message_bytes, confirmed)
    try:
        try:
            yield opened
        finally:
            # Whatever ended the work, what is on its way is awaited, so that it is known.
            await opened.settled()
        opened.raise_failure()
    finally:
        await close_channel(channel)


async def _open(connection: Connection, queue: str) -> AbstractChannel:
    channel = await connection.channel(confirms=True)
    try:
        await channel.queue_declare(queue, passive=True, timeout=RPC_TIMEOUT_S)
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        raise QueueNotFoundError(
            f"there is no queue {queue!r} on {connection.address} to put them into"
        ) from error
    return channel


class Putting(Generic[T]):
    """Made by `putting`."""

    def __init__(
        self,
        channel: AbstractChannel,
        queue: str,
        largest_bytes: int,
        confirmed: Callable[[T], None],
    ) -> None:
        # The confirms of aiormq, without its task and its frames for each message.
        self._channel: Any = channel
        self._out = Gathering(channel)
        self._queue = queue
        self._largest_bytes = largest_bytes
        self._confirmed = confirmed
        publish = spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
        self._publish = pamqp.frame.marshal(publish, channel.number)
        self._running: dict[str, int] = {}
        """The bytes of what is on its way, by message id."""
        self._bytes = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    async def put(self, body: bytes, properties: spec.Basic.Properties, token: T) -> None:
        """Send a message, which must have an id; returns once there is room for the next.

        Raises the first failure of any of them, after which nothing more is sent, or
        MessageTooLargeError or HeadersError for this one alone.
        """
        id = str(properties.message_id)
        if len(body) > self._largest_bytes:
            raise MessageTooLargeError(
                f"{id}: {len(body):,} bytes, and this broker takes at most {self._largest_bytes:,}"
            )
        try:
            message = self._encoded(body, properties)
        except _NOT_ENCODABLE as error:
            raise HeadersError(f"{id}: AMQP can't carry its properties: {error}") from error
        while id in self._running:
            # aiormq matches a returned message to its publish by id alone.
            await self._change()
        self.raise_failure()
        self._send(id, message, token)
        while len(self._running) >= MOST_AT_ONCE or self._bytes > _BYTES_AT_ONCE:
            await self._change()
        self.raise_failure()

    async def settled(self) -> None:
        """Await all confirms that are still out; raises nothing."""
        while self._running:
            await self._change()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _encoded(self, body: bytes, properties: spec.Basic.Properties) -> bytes:
        channel = self._channel
        header = ContentHeader(properties=properties, body_size=len(body))
        parts = [self._publish, pamqp.frame.marshal(header, channel.number)]
        for start in range(0, len(body), channel.max_content_size):
            part = ContentBody(body[start : start + channel.max_content_size])
            parts.append(pamqp.frame.marshal(part, channel.number))
        return b"".join(parts)

    def _send(self, id: str, message: bytes, token: T) -> None:
        channel = self._channel
        channel.delivery_tag += 1
        confirmation = channel.create_future()
        channel.confirmations[channel.delivery_tag] = confirmation
        channel.message_id_delivery_tag[id] = channel.delivery_tag
        self._running[id] = len(message)
        self._bytes += len(message)
        confirmation.add_done_callback(partial(self._ended, id, token))
        self._out.send(lambda: message)

    def _ended(self, id: str, token: T, confirmation: asyncio.Future[object]) -> None:
        self._bytes -= self._running.pop(id, 0)
        self._channel.message_id_delivery_tag.pop(id, None)
        self._changed.set()
        error = asyncio.CancelledError() if confirmation.cancelled() else confirmation.exception()
        if error is None:
            self._confirmed(token)
        else:
            self._failure = self._failure or self._explained(error, id)

    async def _change(self) -> None:
        """Wait until something that is on its way has ended, well or not."""
        self._changed.clear()
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                await self._changed.wait()
        except TimeoutError:
            id = next(iter(self._running))
            self._running.clear()  # nobody waits for them any longer
            self._failure = self._failure or PublishTimeoutError(
                f"{id}: no confirm for {CONFIRM_TIMEOUT_S:g} s; the broker may have it"
            )

    def _explained(self, error: BaseException, id: str) -> BaseException:
        match error:
            case aiormq.exceptions.PublishError():
                told: PublishError = UnroutableError(f"{id}: there is no queue {self._queue!r}")
            case aiormq.exceptions.DeliveryError():
                told = PublishNackedError(
                    f"{id}: {self._queue!r} did not take it (it is full, or it failed inside)"
                )
            case BrokerError():
                return error
            case _ if is_channel_error(error):
                told = ConnectionLostError(
                    f"{id}: the connection was lost before its confirm ({reason_of(error)}); "
                    "the broker may have it"
                )
            case _:
                return error
        told.__cause__ = error
        return told
