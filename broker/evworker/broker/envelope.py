"""The envelope: CloudEvents 1.0 around an event, one encode beside one decode.

Written in structured mode (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md):
one JSON document that any language reads and that survives dead-lettering, shovels and streams.
Read generously: structured, binary with any of the usual header prefixes, and bare JSON.
"""

from __future__ import annotations

import base64
import os
import time as clock
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from evworker.broker.errors import InvalidEventError, UndecodableError
from evworker.broker.event import Event
from evworker.broker.topics import check_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiormq import spec

E = TypeVar("E", bound=Event)

CONTENT_TYPE = "application/cloudevents+json"
UNKNOWN_SOURCE = "unknown"

# What msgspec raises for bytes that are no JSON; the last one for nesting a thousand levels deep.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_DATA = ("data", "data_base64")

_VERSION_DIGITS = 18  # fits 64 bits, as every other integer in the document must

# In this order: the official AMQP binding's two, then what HTTP-minded and shell clients write.
BINARY_PREFIXES = ("cloudEvents_", "cloudEvents:", "ce-", "ce_")


class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event on its way: the event's bytes, and all that is known about them."""

    id: str
    """Unique for its source, for ever: consumers tell duplicates by it. A UUIDv7 unless given."""
    source: str
    topic: str
    time: datetime
    data: bytes
    """The event as JSON, undecoded."""
    version: int | None = None
    key: str | None = None
    """The ordering key; CloudEvents calls it the subject."""
    correlation_id: str | None = None
    """The id of the first event of the whole cascade."""
    causation_id: str | None = None
    """The id of the event whose handler published this one."""
    traceparent: str | None = None
    tracestate: str | None = None
    has_lasting_id: bool = True
    """False for a message that came without an id: each reading of it gives it another one."""

    @classmethod
    def wrap(
        cls,
        event: Event,
        *,
        source: str,
        id: str | None = None,
        key: str | None = None,
        cause: Envelope | None = None,
        time: datetime | None = None,
    ) -> Self:
        """Put an event into an envelope; `cause` is the one whose handler publishes it.

        Raises InvalidEventError for a type without a topic, or a value that JSON can't hold.
        """
        topic = event.__topic__
        if not topic:
            raise InvalidEventError(
                f"{type(event).__name__} has no topic and can't be published; "
                f'declare it as class {type(event).__name__}(Event, topic="…")'
            )
        try:
            data = _json.encode(event)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidEventError(
                f"{type(event).__name__} can't be written as JSON: {error}"
            ) from error
        id = id or new_id()
        return cls(
            id=id,
            source=source,
            topic=topic,
            time=time or datetime.now(UTC),
            data=data,
            version=event.__version__,
            key=key,
            correlation_id=(cause.correlation_id or cause.id) if cause else id,
            causation_id=cause.id if cause else None,
            traceparent=cause.traceparent if cause else None,
            tracestate=cause.tracestate if cause else None,
        )

    def decode(self, event_type: type[E]) -> E:
        """The event as a value of its type.

        Raises InvalidEventError, which names the field and what was expected there, or
        UndecodableError when the data is not JSON at all.
        """
        try:
            # No cast, which is a call.
            return _decoder(event_type).decode(self.data)  # type: ignore[return-value]
        except msgspec.ValidationError as error:
            version = f" v{self.version}" if self.version else ""
            raise InvalidEventError(
                f"{self.topic}{version} is not a valid {event_type.__name__}: {error}"
            ) from error
        except _NOT_JSON as error:
            raise UndecodableError(f"the data of {self.topic} is not JSON: {error}") from error

    def value(self) -> Any:  # any JSON value: whatever the producer sent
        """The event's data as plain JSON values; raises UndecodableError."""
        try:
            return msgspec.json.decode(self.data)
        except _NOT_JSON as error:
            raise UndecodableError(f"the data of {self.topic} is not JSON: {error}") from error

    def encode(self) -> bytes:
        """The structured CloudEvents document, on one line."""
        return _json.encode(
            _Document(
                specversion="1.0",
                id=self.id,
                source=self.source,
                type=self.topic,
                time=self.time,
                subject=self.key,
                dataversion=self.version,
                correlationid=self.correlation_id,
                causationid=self.causation_id,
                traceparent=self.traceparent,
                tracestate=self.tracestate,
                data=msgspec.Raw(self.data),
            )
        )

    @classmethod
    def parse(cls, body: bytes, *, topic: str | None = None) -> Self:
        """Read one line of NDJSON, written by hand or by another program.

        Without `topic` it is a structured document, of which only ``type`` and ``data`` must be
        there; with it, the bare data of that topic. Raises UndecodableError.
        """
        if topic is not None:
            return cls._fresh(topic, _checked_json(body))
        document = _decode_document(body, _LooseDocument)
        content = document.content()
        if not document.type or content is None:
            raise UndecodableError("an envelope needs at least 'type' (the topic) and 'data'")
        _checked_json(content)  # the decoder passes over what is in it
        try:
            check_topic(document.type)
        except ValueError as error:
            raise UndecodableError(str(error)) from error
        return cls._from_document(document)

    @classmethod
    def read_structured(cls, body: bytes) -> Self:
        """Read a message that is known to be a structured document; raises UndecodableError."""
        return cls._from_document(_decode_document(body, _Document))

    @classmethod
    def _fresh(cls, topic: str, data: bytes) -> Self:
        id = new_id()
        return cls(
            id=id,
            source=UNKNOWN_SOURCE,
            topic=topic,
            time=datetime.now(UTC),
            data=data,
            correlation_id=id,
        )

    @classmethod
    def read(cls, body: bytes, properties: spec.Basic.Properties, routing_key: str) -> Self:
        """Read a message in whichever of the three forms it came; raises UndecodableError."""
        if properties.content_encoding not in (None, "", "utf-8", "utf8", "UTF-8", "identity"):
            raise UndecodableError(
                f"the body is encoded as {properties.content_encoding!r}; send it plain"
            )
        content_type = (properties.content_type or "").partition(";")[0].strip().lower()
        if content_type == CONTENT_TYPE:
            return cls._from_document(_decode_document(body, _Document), properties.message_id)
        if content_type.startswith("application/cloudevents"):
            raise UndecodableError(
                f"the content type {content_type!r} is not read; send {CONTENT_TYPE!r}"
            )
        if not _may_be_json(content_type):
            raise UndecodableError(f"the content type {content_type!r} is not JSON")
        attributes = _binary_attributes(properties.headers or {})
        if attributes:
            return cls._from_attributes(attributes, body, properties.message_id)
        return cls._from_bare_json(body, properties, routing_key)

    @classmethod
    def _from_document(cls, document: _Document, message_id: str | None = None) -> Self:
        if document.specversion != "1.0":
            raise UndecodableError(f"CloudEvents {document.specversion!r} is not read; send 1.0")
        lasting_id = document.id or message_id
        id = lasting_id or new_id()
        version = document.dataversion
        return cls(
            id=id,
            source=document.source or UNKNOWN_SOURCE,
            topic=document.type,
            time=_aware(document.time),
            data=document.content() or b"null",
            version=_version(version) if isinstance(version, str) else version,
            key=document.subject,
            correlation_id=document.correlationid or id,
            causation_id=document.causationid,
            traceparent=document.traceparent,
            tracestate=document.tracestate,
            has_lasting_id=bool(lasting_id),
        )

    @classmethod
    def _from_attributes(
        cls, attributes: Mapping[str, str], body: bytes, message_id: str | None
    ) -> Self:
        try:
            document = msgspec.convert(attributes, _Document, strict=False)
        except msgspec.ValidationError as error:
            raise UndecodableError(f"the CloudEvents headers can't be read: {error}") from error
        document.data = msgspec.Raw(_checked_json(body))
        return cls._from_document(document, message_id)

    @classmethod
    def _from_bare_json(
        cls, body: bytes, properties: spec.Basic.Properties, routing_key: str
    ) -> Self:
        # Without a message_id nobody can tell a redelivery from a new event, so any id will do.
        id = properties.message_id or new_id()
        return cls(
            id=id,
            source=properties.app_id or UNKNOWN_SOURCE,
            topic=properties.message_type or routing_key,
            time=_aware(properties.timestamp),
            data=_checked_json(body),
            correlation_id=properties.correlation_id or id,
            has_lasting_id=bool(properties.message_id),
        )


class _Document(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The JSON document of CloudEvents 1.0, with the extension attributes that evworker knows."""

    # These two must be written always, so that they have no default that could be left out.
    specversion: str = msgspec.field(default_factory=lambda: "1.0")
    source: str = msgspec.field(default_factory=lambda: UNKNOWN_SOURCE)
    id: str
    type: str
    time: datetime | None = None
    datacontenttype: str | None = None
    subject: str | None = None
    dataversion: int | str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    data_base64: str | None = None

    def content(self) -> bytes | None:
        """The JSON bytes of the event, or None when there are none; raises UndecodableError."""
        if self.data_base64 is None:
            return bytes(self.data) or None
        try:
            return _checked_json(base64.b64decode(self.data_base64, validate=True))
        except ValueError as error:  # also what is not ASCII
            raise UndecodableError(f"data_base64 is not base64: {error}") from error


class _LooseDocument(_Document, kw_only=True, gc=False):
    id: str = ""
    type: str = ""


_json = msgspec.json.Encoder(decimal_format="string")


@cache
def _decoder(event_type: type[Event]) -> msgspec.json.Decoder[Event]:
    return msgspec.json.Decoder(event_type)


@cache
def _document_decoder(shape: type[_Document]) -> msgspec.json.Decoder[_Document]:
    return msgspec.json.Decoder(shape)


def _decode_document(body: bytes, shape: type[_Document]) -> _Document:
    try:
        return _document_decoder(shape).decode(body)
    except msgspec.ValidationError as error:
        raise UndecodableError(f"not a CloudEvents document: {error}") from error
    except _NOT_JSON as error:
        raise UndecodableError(f"the body is not JSON: {error}") from error


def _checked_json(body: bytes) -> bytes:
    try:
        msgspec.json.decode(body)
    except _NOT_JSON as error:
        raise UndecodableError(f"the body is not JSON: {error}") from error
    return body


def _may_be_json(content_type: str) -> bool:
    return (
        content_type in ("", "application/octet-stream")
        or "json" in content_type
        or content_type.startswith("text/")
    )


def _binary_attributes(headers: Mapping[str, object]) -> dict[str, str]:
    for prefix in BINARY_PREFIXES:
        if f"{prefix}id" in headers and f"{prefix}type" in headers:
            return {
                name.removeprefix(prefix): str(value)
                for name, value in headers.items()
                # The body is the data, whatever a header of that name says.
                if name.startswith(prefix) and name.removeprefix(prefix) not in _DATA
            }
    return {}


def _version(version: str) -> int | None:
    return int(version) if version.isdecimal() and len(version) <= _VERSION_DIGITS else None


def _aware(time: datetime | None) -> datetime:
    if time is None:
        return datetime.now(UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def new_id() -> str:
    """A UUIDv7: sortable by the millisecond of its making (RFC 9562, section 5.7)."""
    # As uuid.UUID would write it, at a sixth of the time.
    time = f"{clock.time_ns() // 1_000_000:012x}"
    try:
        random = _random_digits.pop()
    except IndexError:
        fresh = os.urandom(10 * _IDS_AT_ONCE).hex()
        _random_digits.extend(fresh[at : at + 20] for at in range(20, len(fresh), 20))
        random = fresh[:20]
    return f"{time[:8]}-{time[8:]}-7{random[:3]}-{_VARIANT[random[3]]}{random[4:7]}-{random[8:]}"


# The first two bits of this digit say how the others are to be read; two remain.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

# Of ids to come: asking the system for each of them takes half their time. `pop` gives each to one
# thread alone, and a process that is forked off must not go on with those of its parent.
_IDS_AT_ONCE = 64
_random_digits: list[str] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random_digits.clear)
