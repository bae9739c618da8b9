"""Deliveries: one arrival of one message, until it is settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
import structlog

from evworker.broker.envelope import Envelope
from evworker.broker.errors import UndecodableError
from evworker.broker.fastlane.content_header import (
    decode_headers,
    decode_properties,
    says_structured,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from aiormq import spec
    from aiormq.abc import DeliveredMessage
    from pamqp.common import FieldValue

log = structlog.get_logger("evworker.delivery")


class SettlingChannel(Protocol):
    """Where a delivery came from, and is settled. Each method is False when the channel is gone."""

    @property
    def is_live(self) -> bool:
        """Whether anything can still be settled there."""

    def ack_at_once(self, tag: int) -> bool:
        """As `ack`; also False where that needs waiting."""

    async def ack(self, tag: int) -> bool:
        """The message is done with."""

    async def hand_back(self, tag: int) -> bool:
        """The message is to be delivered again."""

    async def reject(self, tag: int) -> bool:
        """The broker is to dead-letter the message."""


class Delivery(msgspec.Struct, eq=False):
    """One arrival of one message. It ends acked or handed back, or with its channel.

    Its properties are as they came: whoever does not ask for them does not pay for their decoding.
    """

    queue: str
    _channel: SettlingChannel
    _tag: int
    redelivered: bool
    _route: bytes
    """The exchange and the routing key, each behind its length in one byte."""
    _header: bytes
    """Its content header as it lies on the wire; empty for what aiormq has read."""
    body: bytes
    _properties: spec.Basic.Properties | None = None
    _unreadable: str | None = None

    def __repr__(self) -> str:
        return f"<delivery {self._tag} of {self.queue}>"  # and nothing of its body

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("queue", self.queue), ("tag", self._tag)]  # as above

    @classmethod
    def of_message(
        cls, message: DeliveredMessage, queue: str, channel: SettlingChannel
    ) -> Delivery:
        """What aiormq has read."""
        route = (message.exchange or "").encode(), (message.routing_key or "").encode()
        return cls(
            queue,
            channel,
            # Only basic.deliver and basic.get-ok get here, and they have a tag.
            cast("int", cast("spec.Basic.Deliver", message.delivery).delivery_tag),
            bool(message.redelivered),
            b"".join(len(name).to_bytes(1) + name for name in route),
            b"",
            message.body,
            message.header.properties,
        )

    @property
    def exchange(self) -> str:
        """The exchange that it was published to last."""
        return _text(self._route[1 : 1 + self._route[0]])

    @property
    def routing_key(self) -> str:
        """The routing key that it was published with last."""
        return _text(self._route[2 + self._route[0] :])

    @property
    def properties(self) -> spec.Basic.Properties:
        """The message's properties as they came; empty if they can't be read."""
        if self._properties is None:
            self._properties, self._unreadable = decode_properties(self._header)
            if self._unreadable:
                log.warning(
                    "the properties of a message can't be read, it goes on without",
                    queue=self.queue,
                    error=self._unreadable,
                )
        return self._properties

    @property
    def headers(self) -> Mapping[str, FieldValue]:
        """The message's headers as they came."""
        return self.properties.headers or {}

    @property
    def origin_routing_key(self) -> str:
        """The routing key that it was published with, before any retry."""
        origin = self.header("evw-origin-routing-key")
        return origin if isinstance(origin, str) else self.routing_key

    @property
    def returns(self) -> int | None:
        """How often the message came back to its queue unsettled; None where nobody counts.

        Quorum queues count, before 4.3 hand-backs as well; classic ones only tell that it happened
        (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling). A count on what is
        here for the first time is of another queue, where it was before someone moved it.
        """
        if not self.redelivered:
            return 0
        count = self.header("x-delivery-count")
        return count if isinstance(count, int) else None

    @property
    def is_live(self) -> bool:
        """Whether it can still be settled. If not, the broker delivers the message again."""
        return self._channel.is_live

    def header(self, name: str) -> FieldValue:
        """One header; None without it."""
        if self._properties is not None:
            return self.headers.get(name)
        # Looking for its name takes a fraction of what decoding them all does.
        return decode_headers(self._header).get(name) if name.encode() in self._header else None

    def envelope(self) -> Envelope:
        """The message, read in whichever form it came; raises UndecodableError."""
        if self._header and says_structured(self._header):
            envelope = Envelope.read_structured(self.body)
            if envelope.has_lasting_id:
                return envelope
        properties = self.properties
        if self._unreadable:
            raise UndecodableError(f"its properties can't be read: {self._unreadable}")
        return Envelope.read(self.body, properties, self.origin_routing_key)

    def ack_at_once(self) -> bool:
        """As `ack`, but False also where that needs waiting: then nothing has been done."""
        return self._channel.ack_at_once(self._tag)

    def ack(self) -> Coroutine[Any, Any, bool]:
        """Tell the broker that the message is done with; False when its channel is gone."""
        return self._channel.ack(self._tag)

    def hand_back(self) -> Coroutine[Any, Any, bool]:
        """Give the message back unharmed, to be delivered again; False when its channel is gone.

        A nack and not a reject: from 4.3 on only the latter counts as a failed delivery
        (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
        """
        return self._channel.hand_back(self._tag)

    def reject(self) -> Coroutine[Any, Any, bool]:
        """Have the broker itself dead-letter the message; False when its channel is gone.

        Safe only where the queue dead-letters at least once.
        """
        return self._channel.reject(self._tag)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
