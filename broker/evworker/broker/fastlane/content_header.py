"""Content headers: a message's properties as they lie on the wire, read only as far as asked.

A header is 12 bytes, of which the last eight are the size of the body, then flags for the
properties that are there, and these in the order of their flags
(https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 4.2.6.1).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiormq import spec
from pamqp import encode
from pamqp.header import ContentHeader

from evworker.broker.envelope import CONTENT_TYPE

if TYPE_CHECKING:
    from pamqp.common import FieldTable

_CONTENT_TYPE, _CONTENT_ENCODING = 1 << 15, 1 << 14

_CLASS_BASIC = 60
_FLAGS_AT, _PROPERTIES_AT = 12, 14
_start = struct.Struct(">HHQH").pack
_flags = struct.Struct(">H").unpack_from

_STRUCTURED = bytes((len(CONTENT_TYPE),)) + CONTENT_TYPE.encode()
_STRUCTURED_END = _PROPERTIES_AT + len(_STRUCTURED)
_EMPTY_TABLE = bytes(4)

_SHORT_STRING_BYTES = 255


def says_structured(header: bytes) -> bool:
    """Whether it is plain that the body is one structured CloudEvents document."""
    flags = _flags(header, _FLAGS_AT)[0]
    return (
        flags & (_CONTENT_TYPE | _CONTENT_ENCODING) == _CONTENT_TYPE
        and header[_PROPERTIES_AT:_STRUCTURED_END] == _STRUCTURED
    )


def decode_properties(header: bytes) -> tuple[spec.Basic.Properties, str | None]:
    """The properties; if they can't be read none of them, and why."""
    try:
        content = ContentHeader()
        content.unmarshal(header)
    except (ValueError, LookupError, RecursionError, struct.error) as error:
        return spec.Basic.Properties(), f"{type(error).__name__}: {error}"
    return content.properties, None


def encode_header(properties: spec.Basic.Properties, body_bytes: int) -> bytes:
    """The payload of a header frame. Raises ValueError or TypeError for what AMQP can't carry."""
    flags = 0
    parts = []
    for flag, name, encoded in _PROPERTIES:
        value = getattr(properties, name)
        if value is not None and value != "":
            flags |= flag
            parts.append(encoded(value))
    return _start(_CLASS_BASIC, 0, body_bytes, flags) + b"".join(parts)


def _text(value: str) -> bytes:
    text = value.encode()
    if len(text) > _SHORT_STRING_BYTES:
        raise ValueError(f"{value[:40]!r}… is longer than {_SHORT_STRING_BYTES} bytes")
    return len(text).to_bytes(1) + text


def _number(value: int) -> bytes:
    return value.to_bytes(1)


def _table(headers: FieldTable) -> bytes:
    return encode.field_table(headers) if headers else _EMPTY_TABLE


_PROPERTIES: tuple[tuple[int, str, Callable[..., bytes]], ...] = (
    (_CONTENT_TYPE, "content_type", _text),
    (_CONTENT_ENCODING, "content_encoding", _text),
    (1 << 13, "headers", _table),
    (1 << 12, "delivery_mode", _number),
    (1 << 11, "priority", _number),
    (1 << 10, "correlation_id", _text),
    (1 << 9, "reply_to", _text),
    (1 << 8, "expiration", _text),
    (1 << 7, "message_id", _text),
    (1 << 6, "timestamp", encode.timestamp),
    (1 << 5, "message_type", _text),
    (1 << 4, "user_id", _text),
    (1 << 3, "app_id", _text),
)
