"""A dead letter: a message of a dead-letter queue, with the failure on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import msgspec
from aiormq import spec

from evworker.broker.deadletters.history import (
    EDIT_OF_HEADER,
    Death,
    history_in,
    replays_in,
)
from evworker.broker.envelope import Envelope
from evworker.broker.errors import UndecodableError
from evworker.broker.failure import Failure
from evworker.broker.frames import frame_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiormq.abc import DeliveredMessage
    from pamqp.common import FieldValue

HOPELESS = frozenset(("undecodable", "invalid"))
"""The reasons of letters that fail again however often they are replayed, unless code changes."""

_GROUP_DIGITS = 8

# What such a letter's headers tell of an error is about an earlier failure, if about any.
_WITHOUT_ERROR = ("crashed", "unknown")


@dataclass(frozen=True, slots=True)
class Letter:
    """One message of a dead-letter queue, with the failure on it."""

    position: int
    """Its place in the queue, from 1."""
    id: str | None
    topic: str | None
    envelope: Envelope | None
    """None when the body can't be read as an event; `body` has its bytes untouched."""
    body: bytes
    content_type: str | None
    headers: Mapping[str, FieldValue]
    failure: Failure
    properties: spec.Basic.Properties = field(default_factory=spec.Basic.Properties, compare=False)
    """Its AMQP properties as they are, `headers` among them."""

    @classmethod
    def read(cls, message: DeliveredMessage, position: int) -> Self:
        """Read what lies in a dead-letter queue, whoever put it there."""
        properties = message.header.properties
        headers = properties.headers or {}
        failure = Failure.from_headers(headers)
        if message.exchange and failure.origin_routing_key is None:
            # It was not put there by name, so that it still has the way it came.
            failure = _with_origin(failure, message.exchange, message.routing_key or "")
        envelope = _envelope_in(message.body, properties, failure)
        return cls(
            position=position,
            id=_lasting_id(envelope, message.body, properties)
            if envelope
            else properties.message_id,
            topic=envelope.topic or None
            if envelope
            else properties.message_type or failure.origin_routing_key,
            envelope=envelope,
            body=message.body,
            content_type=properties.content_type,
            headers=headers,
            failure=failure,
            properties=properties,
        )

    @property
    def died_at(self) -> datetime | None:
        """When it failed last; with a time zone, whoever wrote it."""
        failure = self.failure
        time = failure.failed_at or failure.first_failed_at
        return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time

    @property
    def frame(self) -> str | None:
        """Where in the user's code it failed, as ``module:function``."""
        failure = self.failure
        return failure.frame or (frame_in(failure.traceback) if failure.traceback else None)

    @property
    def group(self) -> str:
        """The fingerprint of its failure: the same for all that failed in the same way.

        A hash of the exception's type, the innermost frame in the user's code without its line
        number, and the consumer.
        """
        failure = self.failure
        if failure.reason in _WITHOUT_ERROR or not failure.error_type:
            what, where = str(failure.reason), ""
        else:
            what, where = failure.error_type, self.frame or ""
        kind = "\0".join((what, where, failure.consumer or ""))
        digest = hashlib.sha256(kind.encode("utf-8", "backslashreplace"))
        return digest.hexdigest()[:_GROUP_DIGITS]

    @property
    def history(self) -> tuple[Death, ...]:
        """Its deaths before it was replayed, oldest first; the last ten are remembered."""
        return history_in(self.headers)

    @property
    def replays(self) -> int:
        """How often it was replayed."""
        return replays_in(self.headers)

    @property
    def edit_of(self) -> str | None:
        """The id of the event that it was edited from."""
        id = self.headers.get(EDIT_OF_HEADER)
        return id if isinstance(id, str) else None

    @property
    def is_hopeless(self) -> bool:
        """Whether it must fail again as it is, unless code changes."""
        return self.failure.reason in HOPELESS


def _envelope_in(
    body: bytes, properties: spec.Basic.Properties, failure: Failure
) -> Envelope | None:
    read_at = datetime.now(UTC)
    try:
        envelope = Envelope.read(body, properties, failure.origin_routing_key or "")
    except UndecodableError:
        return None
    if envelope.time >= read_at and (failed_at := failure.first_failed_at or failure.failed_at):
        # Nothing tells when it happened; that it failed is as near as can be known, and stays so.
        envelope = msgspec.structs.replace(envelope, time=failed_at)
    return envelope


def _with_origin(failure: Failure, exchange: str, routing_key: str) -> Failure:
    return replace(failure, origin_exchange=exchange, origin_routing_key=routing_key)


def _lasting_id(envelope: Envelope, body: bytes, properties: spec.Basic.Properties) -> str | None:
    """The event's id, if it has one: one that was made just now is another at the next look."""
    known = envelope.id == properties.message_id or envelope.id.encode() in body
    return envelope.id if known or envelope.id in (properties.headers or {}).values() else None
