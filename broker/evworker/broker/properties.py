"""The properties of a message: what AMQP says about an envelope, beside the envelope itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from aiormq import spec

from evworker.broker.envelope import CONTENT_TYPE, Envelope
from evworker.broker.errors import HeadersError
from evworker.broker.headers import Scalar, checked_headers

if TYPE_CHECKING:
    from pamqp.common import FieldTable

PERSISTENT = 2

SHORT_STRING_BYTES = 255
"""AMQP's limit for ids, types and routing keys."""

_HIGHEST_PRIORITY = 255
_EPOCH_YEAR = 1970


def message_properties(
    envelope: Envelope, priority: int | None, headers: Mapping[str, Scalar] | None
) -> spec.Basic.Properties:
    """What travels beside an envelope's body; raises HeadersError for what AMQP can't carry."""
    check_properties(envelope, priority)
    attached: FieldTable = {}
    # It may be another program's, handed on; one too long for a frame would end the connection.
    if (traceparent := envelope.traceparent) and _is_short(traceparent):
        attached["traceparent"] = traceparent
    if headers:
        attached.update(checked_headers(headers))
    correlation_id = envelope.correlation_id
    return spec.Basic.Properties(
        content_type=CONTENT_TYPE,
        delivery_mode=PERSISTENT,
        priority=priority,
        correlation_id=correlation_id if correlation_id and _is_short(correlation_id) else None,
        message_id=envelope.id,
        timestamp=envelope.time if _is_of_amqps_time(envelope.time) else None,
        message_type=envelope.topic,
        app_id=envelope.source,
        headers=attached,
    )


def check_properties(envelope: Envelope, priority: int | None) -> None:
    """Raise HeadersError for what AMQP can't carry, or UnicodeEncodeError for a lone surrogate."""
    if priority is not None and not 0 <= priority <= _HIGHEST_PRIORITY:
        raise HeadersError(f"priority {priority} is not between 0 and {_HIGHEST_PRIORITY}")
    for name, text in (("id", envelope.id), ("topic", envelope.topic), ("source", envelope.source)):
        if not _is_short(text):
            raise HeadersError(
                f"the {name} {text[:40]!r}… is longer than {SHORT_STRING_BYTES} bytes"
            )


def _is_short(text: str) -> bool:
    if text.isascii():
        return len(text) <= SHORT_STRING_BYTES
    return len(text.encode()) <= SHORT_STRING_BYTES


def _is_of_amqps_time(time: datetime) -> bool:
    """AMQP counts seconds from 1970 and up; no time zone lies a year off."""
    return time.year > _EPOCH_YEAR or time.timestamp() >= 0
