"""The publisher: when `publish` returns, the broker has the event on disk.

Every publish is persistent, confirmed and has a deadline; thousands may await their confirms at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Self

from aiormq import spec

from evworker.broker.channels import close_channel
from evworker.broker.connection import Connection
from evworker.broker.envelope import Envelope
from evworker.broker.errors import (
    BrokerError,
    EvworkerError,
    HeadersError,
    MessageTooLargeError,
    PublishManyError,
)
from evworker.broker.headers import Scalar
from evworker.broker.message import Message, event_message
from evworker.broker.pipeline import Pipeline
from evworker.broker.sending import Sending
from evworker.broker.topology import DEFAULT_EXCHANGE

if TYPE_CHECKING:
    from types import TracebackType

    from evworker.broker.address import BrokerAddress
    from evworker.broker.event import Event
    from evworker.broker.fastlane.confirms import Confirm

DEFAULT_TIMEOUT_S = 10.0


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
        self._sending = Sending(self._connection, exchange)

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
            await self._sending.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the channel, and the connection if it is this publisher's own.

        From then on a publish raises ConnectionLostError, until the publisher is opened again.
        """
        channel = self._sending.close()
        if self._owns_connection:
            await self._connection.close()
        elif channel is not None:
            await close_channel(channel)
        await self._sending.closed()

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
        message = self._message(envelope, priority, headers, mandatory=mandatory)
        await self._sending.send(message, self.timeout_s if timeout_s is None else timeout_s)
        return envelope

    async def publish_many(
        self,
        events: Iterable[Event | Envelope],
        *,
        key: Callable[[Event], str | None] | None = None,
        priority: int | None = None,
        headers: Mapping[str, Scalar] | None = None,
        timeout_s: float | None = None,
        cause: Envelope | None = None,
    ) -> list[Envelope]:
        """Publish many events at once; returns their envelopes, in order, once the broker has all.

        Each is sent, awaited and timed as `publish` does it, without a task of its own, and some
        thousands are on their way at once: so `events` may be of any length. They are sent in order
        (those of a MiB or more aside), which is all that is promised about it. `key` tells an
        event's ordering key. An envelope goes as it is: so the ones that have failed can be
        published again under their ids.

        Raises PublishManyError, which has what was confirmed and what was not, after the first
        that failed; from then on nothing is taken from `events`, and what is on its way is awaited.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        pipeline = Pipeline(self._sending, timeout_s)
        stopped: Exception | None = None
        try:
            try:
                for event in events:
                    if isinstance(event, Envelope):
                        envelope = event
                    else:
                        of_key = None if key is None else key(event)
                        envelope = Envelope.wrap(event, source=self.source, key=of_key, cause=cause)
                    try:
                        message = self._message(envelope, priority, headers, mandatory=True)
                        if not pipeline.put_now(envelope, message):
                            await pipeline.put(envelope, message)
                    except BrokerError as error:
                        pipeline.failed.append((envelope, error))
                    if pipeline.failed:
                        break
            except Exception as error:  # noqa: BLE001 - of `events`, `key` or an event: it is told
                stopped = error
            await pipeline.drain()
        finally:
            pipeline.abandon()
        if stopped is not None or pipeline.failed:
            why = stopped or pipeline.failed[0][1]
            raise PublishManyError(pipeline.confirmed, pipeline.failed, why) from why
        return pipeline.confirmed

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
        message = self._message(envelope, priority, headers, mandatory=mandatory)
        await self._sending.send(message, self.timeout_s if timeout_s is None else timeout_s)

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
        route = (exchange, routing_key, mandatory)
        message = Message(body, route, properties.message_id or None, None, properties)
        self._check_size(message)
        await self._sending.send(message, self.timeout_s if timeout_s is None else timeout_s)

    def begin(self, message: Message, timeout_s: float) -> Confirm:
        """Send a message, at once or by a task that waits until it can be; raises HeadersError.

        The confirm says what came of it, for `explained`.
        """
        self._check_size(message)
        return self._sending.begin(message, timeout_s)

    def explained(
        self, failure: BaseException, message: Message, timeout_s: float
    ) -> EvworkerError:
        """Why a message that was begun has no confirm."""
        return self._sending.explained(failure, message, timeout_s)

    def _message(
        self,
        envelope: Envelope,
        priority: int | None,
        headers: Mapping[str, Scalar] | None,
        *,
        mandatory: bool,
    ) -> Message:
        route = (self.exchange, envelope.topic, mandatory)
        try:
            message = event_message(envelope, envelope.encode(), route, priority, headers)
        except UnicodeEncodeError as error:  # a lone surrogate, in the id or the key
            raise HeadersError(
                f"{envelope.topic}: its id or key is not valid Unicode: {error.reason}"
            ) from error
        self._check_size(message)
        return message

    def _check_size(self, message: Message) -> None:
        size, limit = len(message.body), self._connection.version.max_message_bytes
        if size > limit:
            raise MessageTooLargeError(
                f"{message.routing_key} {message.id}: {size:,} bytes, and RabbitMQ "
                f"{self._connection.version} takes at most {limit:,}; "
                "send a reference to the data instead"
            )
