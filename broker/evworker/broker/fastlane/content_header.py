"""Content headers: a message's properties as they lie on the wire, read only as far as asked.

A header is 12 bytes, of which the last eight are the size of the body, then flags for the
properties that are there, and these in the order of their flags
(https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 4.2.6.1).
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from aiormq import spec
from pamqp import decode, encode
from pamqp.header import ContentHeader

from evworker.broker.envelope import CONTENT_TYPE
from evworker.broker.properties import PERSISTENT

if TYPE_CHECKING:
    from pamqp.common import FieldTable

    from evworker.broker.envelope import Envelope

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13

_CLASS_BASIC = 60
_FLAGS_AT, _PROPERTIES_AT = 12, 14
_start = struct.Struct(">HHQH").pack
_seconds = struct.Struct(">Q").pack
_flags = struct.Struct(">H").unpack_from

_STRUCTURED = bytes((len(CONTENT_TYPE),)) + CONTENT_TYPE.encode()
_STRUCTURED_END = _PROPERTIES_AT + len(_STRUCTURED)
_EMPTY_TABLE = bytes(4)

# Of an event: content type, headers, delivery mode, correlation id, message id, timestamp, type and
# application id; the first three are always the same.
_EVENT_FLAGS = 0b1011_0100_1110_1000
_EVENT_START = _STRUCTURED + _EMPTY_TABLE + bytes((PERSISTENT,))
_EPOCH_YEAR, _MILLISECONDS_YEAR = 1970, 2106  # from the latter on pamqp reads milliseconds

_UNREADABLE = (ValueError, LookupError, RecursionError, struct.error)

_LENGTHS = tuple(length.to_bytes(1) for length in range(256))


def says_structured(header: bytes) -> bool:
    """Whether it is plain that the body is one structured CloudEvents document."""
    flags = _flags(header, _FLAGS_AT)[0]
    return (
        flags & (_CONTENT_TYPE | _CONTENT_ENCODING) == _CONTENT_TYPE
        and header[_PROPERTIES_AT:_STRUCTURED_END] == _STRUCTURED
    )


def decode_headers(header: bytes) -> FieldTable:
    """The table of headers alone; empty without one, or if it can't be read."""
    at, flags = _PROPERTIES_AT, _flags(header, _FLAGS_AT)[0]
    try:
        for flag in (_CONTENT_TYPE, _CONTENT_ENCODING):
            if flags & flag:
                at += 1 + header[at]
        return decode.field_table(header[at:])[1] if flags & _HEADERS else {}
    except _UNREADABLE:
        return {}


def decode_properties(header: bytes) -> tuple[spec.Basic.Properties, str | None]:
    """The properties; if they can't be read none of them, and why."""
    try:
        content = ContentHeader()
        content.unmarshal(header)
    except _UNREADABLE as error:
        return spec.Basic.Properties(), f"{type(error).__name__}: {error}"
    return content.properties, None


def encode_header(properties: spec.Basic.Properties, body_bytes: int) -> bytes:
    """The payload of a header frame, as pamqp would write it.

    Raises ValueError, TypeError or OverflowError for what AMQP can't carry.
    """
    try:
        flags, parts = _encoded(properties)
    except (AttributeError, IndexError) as error:
        what = "is too long" if isinstance(error, IndexError) else "has the wrong type"
        raise ValueError(f"one of the properties {what}: {error}") from error
    return _start(_CLASS_BASIC, 0, body_bytes, flags) + b"".join(parts)


def encode_event_header(envelope: Envelope, body_bytes: int) -> bytes | None:
    """The same for what every event has and no more, at a fifth of the time; None for all others.

    Raises UnicodeEncodeError for a lone surrogate.
    """
    id, correlation_id, time = envelope.id, envelope.correlation_id, envelope.time
    topic, source = envelope.topic, envelope.source
    if (
        not (id and correlation_id and topic and source)
        or envelope.traceparent
        or time.tzinfo is not UTC
        or not _EPOCH_YEAR < time.year < _MILLISECONDS_YEAR
    ):
        return None
    try:
        its_id = _text(id)
        return b"".join(
            (
                _start(_CLASS_BASIC, 0, body_bytes, _EVENT_FLAGS),
                _EVENT_START,
                its_id if correlation_id == id else _text(correlation_id),
                its_id,
                _seconds(int(time.timestamp())),
                _kept_text(topic),
                _kept_text(source),
            )
        )
    except IndexError:  # one of them is too long
        return None


def _encoded(  # noqa: C901, PLR0912 - a property a line: a loop over them takes twice the time
    properties: spec.Basic.Properties,
) -> tuple[int, list[bytes]]:
    flags = 0
    parts: list[bytes] = []
    if text := properties.content_type:
        flags |= _CONTENT_TYPE
        parts.append(_kept_text(text))
    if text := properties.content_encoding:
        flags |= _CONTENT_ENCODING
        parts.append(_kept_text(text))
    if (headers := properties.headers) is not None:
        flags |= 1 << 13
        parts.append(encode.field_table(headers) if headers else _EMPTY_TABLE)
    if (octet := properties.delivery_mode) is not None:
        flags |= 1 << 12
        parts.append(octet.to_bytes(1))
    if (octet := properties.priority) is not None:
        flags |= 1 << 11
        parts.append(octet.to_bytes(1))
    if text := properties.correlation_id:
        flags |= 1 << 10
        parts.append(_text(text))
    if text := properties.reply_to:
        flags |= 1 << 9
        parts.append(_text(text))
    if text := properties.expiration:
        flags |= 1 << 8
        parts.append(_text(text))
    if text := properties.message_id:
        flags |= 1 << 7
        parts.append(_text(text))
    if (time := properties.timestamp) is not None:
        flags |= 1 << 6
        parts.append(_timestamp(time))
    if text := properties.message_type:
        flags |= 1 << 5
        parts.append(_kept_text(text))
    if text := properties.user_id:
        flags |= 1 << 4
        parts.append(_kept_text(text))
    if text := properties.app_id:
        flags |= 1 << 3
        parts.append(_kept_text(text))
    return flags, parts


def _text(value: str) -> bytes:
    text = value.encode()
    return _LENGTHS[len(text)] + text


_kept_text = lru_cache(maxsize=1024)(_text)  # of what is the same in many messages


def _timestamp(value: datetime) -> bytes:
    if type(value) is datetime and value.tzinfo is UTC:
        return _seconds(int(value.timestamp()))
    return encode.timestamp(value)
