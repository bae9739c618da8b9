"""A message on its way out: its body, where to, and its properties in the form that is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from evworker.broker.fastlane.content_header import (
    decode_properties,
    encode_event_header,
    encode_header,
)
from evworker.broker.properties import message_properties

if TYPE_CHECKING:
    from aiormq import spec

    from evworker.broker.envelope import Envelope
    from evworker.broker.fastlane.confirms import Route
    from evworker.broker.headers import Scalar


class Message(msgspec.Struct, frozen=True, gc=False):
    """The tap takes a header and aiormq takes properties: one of the two was given."""

    body: bytes
    route: Route
    id: str | None
    given_header: bytes | None
    given_properties: spec.Basic.Properties | None

    @property
    def routing_key(self) -> str:
        return self.route[1]

    @property
    def header(self) -> bytes:
        """Raises what `encode_header` does."""
        if self.given_header is not None:
            return self.given_header
        return encode_header(self.properties, len(self.body))

    @property
    def properties(self) -> spec.Basic.Properties:
        """As they were given, or as they stand in the header."""
        if self.given_properties is not None:
            return self.given_properties
        return decode_properties(self.given_header or b"")[0]


def event_message(
    envelope: Envelope,
    body: bytes,
    route: Route,
    priority: int | None,
    headers: Mapping[str, Scalar] | None,
) -> Message:
    """The message of an envelope, whose encoded form is `body`.

    Raises HeadersError for what AMQP can't carry, or UnicodeEncodeError for a lone surrogate.
    """
    header = properties = None
    if priority is None and not headers:
        header = encode_event_header(envelope, len(body))
    if header is None:
        properties = message_properties(envelope, priority, headers)
    return Message(body, route, envelope.id, header, properties)
