"""The publisher: when `publish` returns, the broker has the event on disk.

Every publish is persistent, confirmed and has a deadline; thousands may await their confirms at
once.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import aiormq.exceptions
from aiormq import spec

from evworker.broker.channels import close_channel, is_channel_error, reason_of
from evworker.broker.connection import Connection
from evworker.broker.declare import apply_topology
from evworker.broker.envelope import Envelope
from evworker.broker.errors import (
    BrokerError,
    BrokerRefusedError,
    ConnectionLostError,
    HeadersError,
    MessageTooLargeError,
    PublishError,
    PublishNackedError,
    PublishTimeoutError,
    TopologyMismatchError,
    UnroutableError,
)
from evworker.broker.headers import Scalar
from evworker.broker.properties import message_properties
from evworker.broker.topology import DEFAULT_EXCHANGE, events_topology

if TYPE_CHECKING:
    from types import TracebackType

    from aiormq.abc import AbstractChannel

    from evworker.broker.address import BrokerAddress
    from evworker.broker.event import Event

DEFAULT_TIMEOUT_S = 10.0

# A body over the broker's own limit closes its channel and fails everything in flight there. One
# that might be goes alone.
_ALONE_FROM_BYTES = 1024 * 1024
_ALONE_AT_ONCE = 8


class Publisher:
    """Sends events to the topic exchange, and knows when the broker has them.

    >>> async with Publisher("amqp://guest:guest@localhost/") as publisher:  # doctest: +SKIP
    ...     await publisher.publish(OrderPlaced(order_id="42"))

    Given a URL or an address it opens a connection of its own; given a `Connection` it uses that
    one and leaves it open. Opening declares the exchange and what catches the unrouted. `source`
    says in each envelope who published; `timeout_s` is the deadline of each publish, waiting for a
    lost connection to come back included.
    """

    def __init__(
        self,
        broker: str | BrokerAddress | Connection,
        *,
        exchange: str = DEFAULT_EXCHANGE,
        source: str = "evworker",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._owns_connection = not isinstance(broker, Connection)
        self._connection = (
            broker
            if isinstance(broker, Connection)
            else Connection(broker, name=f"{source} publisher")
        )
        self.exchange = exchange
        self.source = source
        self.timeout_s = timeout_s
        self._channel: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._in_flight: dict[str, asyncio.Event] = {}
        self._alone = asyncio.Semaphore(_ALONE_AT_ONCE)
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect and declare. Raises what `Connection.open` raises, or TopologyMismatchError."""
        if self._owns_connection:
            await self._connection.open()
        try:
            await self._shared_channel()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the channel, and the connection if it is this publisher's own."""
        channel, self._channel = self._channel, None
        if self._owns_connection:
            await self._connection.close()
        elif channel is not None:
            await close_channel(channel)
        await asyncio.gather(*self._closing)

    async def publish(
        self,
        event: Event,
        *,
        key: str | None = None,
        priority: int | None = None,
        id: str | None = None,
        headers: Mapping[str, Scalar] | None = None,
        mandatory: bool = True,
        timeout_s: float | None = None,
        cause: Envelope | None = None,
    ) -> Envelope:
        """Publish an event; returns its envelope once the broker has it on disk.

        `key` orders it among others of that key, `priority` (0 to 255) lets it overtake on priority
        queues, `id` repeats an earlier attempt safely, `cause` is the envelope whose handler
        publishes this one.

        An event that nobody is bound to is kept in ``<exchange>.unrouted`` and counts as published.
        `mandatory` is about an exchange without that safety net: True raises UnroutableError there,
        False lets the broker drop the event.

        Raises a PublishError, whose class says whether the broker may have the event all the same,
        or InvalidEventError for a value that JSON can't hold.
        """
        envelope = Envelope.wrap(event, source=self.source, id=id, key=key, cause=cause)
        await self.publish_envelope(
            envelope, priority=priority, headers=headers, mandatory=mandatory, timeout_s=timeout_s
        )
        return envelope

    async def publish_envelope(
        self,
        envelope: Envelope,
        *,
        priority: int | None = None,
        headers: Mapping[str, Scalar] | None = None,
        mandatory: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Publish what is already in its envelope. Raises as `publish` does."""
        try:
            properties = message_properties(envelope, priority, headers)
            body = envelope.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, in the id or the key
            raise HeadersError(
                f"{envelope.topic}: its id or key is not valid Unicode: {error.reason}"
            ) from error
        await self.send(
            body,
            properties,
            exchange=self.exchange,
            routing_key=envelope.topic,
            mandatory=mandatory,
            timeout_s=timeout_s,
        )

    async def send(
        self,
        body: bytes,
        properties: spec.Basic.Properties,
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Send any message and await its confirm: the one way out for everything.

        The message must have an id. Raises a PublishError, or BrokerRefusedError or
        TopologyMismatchError when the broker no longer is what it was on opening.
        """
        limit = self._connection.version.max_message_bytes
        if len(body) > limit:
            raise MessageTooLargeError(
                f"{routing_key} {properties.message_id}: {len(body):,} bytes, and RabbitMQ "
                f"{self._connection.version} takes at most {limit:,}; "
                "send a reference to the data instead"
            )
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        sent = False
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._one_in_flight(str(properties.message_id)),
                self._channel_for(len(body)) as channel,
            ):
                sent = True
                await channel.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=routing_key,
                    properties=properties,
                    mandatory=mandatory,
                )
        except TimeoutError as error:
            raise self._timed_out(routing_key, properties, timeout_s, sent=sent) from error
        except (BrokerRefusedError, TopologyMismatchError):
            raise
        except BrokerError as error:
            what = f"{routing_key} {properties.message_id}"
            raise ConnectionLostError(f"{what}: not sent, {error}") from error
        except BaseException as error:
            if not is_channel_error(error) and not isinstance(error, _NOT_ENCODABLE):
                raise
            raise _explained(error, exchange, routing_key, properties, len(body)) from error

    def _timed_out(
        self, routing_key: str, properties: spec.Basic.Properties, timeout_s: float, *, sent: bool
    ) -> PublishTimeoutError:
        what = f"{routing_key} {properties.message_id}"
        if not sent:
            return PublishTimeoutError(
                f"{what}: not sent, there was no channel to {self._connection.address} "
                f"for {timeout_s:g} s"
            )
        why = "the broker blocks publishing" if self._connection.is_blocked else "no confirm"
        return PublishTimeoutError(
            f"{what}: {why} for {timeout_s:g} s; the broker may have it or get it yet, "
            "publish it again with the same id"
        )

    @asynccontextmanager
    async def _one_in_flight(self, message_id: str) -> AsyncIterator[None]:
        # aiormq matches a returned message to its publish by message id alone: two at once with
        # one id would swap their results.
        while (other := self._in_flight.get(message_id)) is not None:
            await other.wait()
        mine = self._in_flight[message_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._in_flight[message_id]
            mine.set()

    @asynccontextmanager
    async def _channel_for(self, body_bytes: int) -> AsyncIterator[AbstractChannel]:
        if body_bytes < _ALONE_FROM_BYTES:
            yield await self._shared_channel()
            return
        async with self._alone:
            channel = await self._connection.channel(confirms=True)
            try:
                yield channel
            finally:
                # Not awaited: the deadline of this publish may be over.
                closing = asyncio.create_task(close_channel(channel))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def _shared_channel(self) -> AbstractChannel:
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                await apply_topology(self._connection, events_topology(self.exchange))
                self._channel = await self._connection.channel(confirms=True)
        return self._channel


_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, struct.error)


def _explained(  # noqa: PLR0911 - a table
    error: BaseException,
    exchange: str,
    routing_key: str,
    properties: spec.Basic.Properties,
    body_bytes: int,
) -> PublishError:
    what = f"{routing_key} {properties.message_id}"
    match error:
        case aiormq.exceptions.PublishError():
            where = f"exchange {exchange!r}" if exchange else "the default exchange"
            return UnroutableError(
                f"{what}: no queue takes it at {where}, and nothing there keeps the unrouted; "
                "run `evworker topology apply`"
            )
        case aiormq.exceptions.DeliveryError():
            return PublishNackedError(
                f"{what}: the broker did not take it (its queue is full, or it failed inside)"
            )
        # These three close the channel for everybody on it; whose fault it was stands in the text.
        case aiormq.exceptions.ChannelPreconditionFailed() if f"message size {body_bytes} " in str(
            error
        ):
            return MessageTooLargeError(f"{what}: {error}")
        case aiormq.exceptions.ChannelNotFoundEntity() if repr(exchange) in str(error):
            return UnroutableError(f"{what}: {error}; run `evworker topology apply`")
        case aiormq.exceptions.ChannelAccessRefused() if repr(exchange) in str(error):
            return PublishError(f"{what}: the broker's user may not publish there: {error}")
        case TypeError() | ValueError() | OverflowError() | struct.error():
            return HeadersError(f"{what}: AMQP can't carry its properties: {error}")
    return _lost(routing_key, properties, error)


def _lost(
    routing_key: str, properties: spec.Basic.Properties, error: BaseException
) -> ConnectionLostError:
    return ConnectionLostError(
        f"{routing_key} {properties.message_id}: the connection was lost before its confirm "
        f"({reason_of(error)}); the broker may have it, "
        "publish it again with the same id"
    )
