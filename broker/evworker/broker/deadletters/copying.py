"""The copy of a letter that goes back to work: its message, less the failure, plus its history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiormq import spec

from evworker.broker.deadletters.history import (
    HISTORY_HEADER,
    REPLAYED_AT_HEADER,
    REPLAYS_HEADER,
    Death,
    written,
)
from evworker.broker.envelope import new_id
from evworker.broker.failure import FAILURE_HEADERS
from evworker.broker.headers import fit_into_frame, kept_headers, size_of
from evworker.broker.properties import PERSISTENT, SHORT_STRING_BYTES

if TYPE_CHECKING:
    from pamqp.common import FieldTable, FieldValue

    from evworker.broker.deadletters.letter import Letter

_NOT_ENCODABLE = (TypeError, ValueError, OverflowError)


def copy_of(letter: Letter, now: datetime) -> spec.Basic.Properties:
    """The properties of the copy: attempts start afresh, and how it died so far is remembered.

    Ids, priority, times and foreign headers are kept. The way by which the message came at first is
    kept, too: bare JSON has its topic from there.
    """
    failure = letter.failure
    headers = kept_headers(
        {name: value for name, value in letter.headers.items() if name not in FAILURE_HEADERS}
    )
    if letter.properties.user_id:
        # The broker checks user_id against the login that publishes, and closes the channel.
        headers["evw-user-id"] = letter.properties.user_id
    if failure.origin_routing_key is not None:
        headers["evw-origin-exchange"] = failure.origin_exchange or ""
        headers["evw-origin-routing-key"] = failure.origin_routing_key
    headers[HISTORY_HEADER] = written((*letter.history, Death.of(failure, replayed_at=now)))
    headers[REPLAYS_HEADER] = letter.replays + 1
    headers[REPLAYED_AT_HEADER] = now.isoformat(timespec="milliseconds")
    return resent(letter.properties, sendable_headers(headers))


def resent(old: spec.Basic.Properties, headers: FieldTable) -> spec.Basic.Properties:
    """The properties with other headers, less what would make the broker refuse or expire them."""
    return spec.Basic.Properties(
        content_type=short_string(old.content_type),
        content_encoding=short_string(old.content_encoding),
        headers=headers,
        delivery_mode=PERSISTENT,
        priority=old.priority,
        correlation_id=short_string(old.correlation_id),
        reply_to=short_string(old.reply_to),
        message_id=short_string(old.message_id) or new_id(),
        timestamp=old.timestamp,
        message_type=short_string(old.message_type),
        app_id=short_string(old.app_id),
    )


def sendable_headers(headers: FieldTable) -> FieldTable:
    """The headers as far as they fit a frame; what can be read and not be written is left out."""
    try:
        return fit_into_frame(headers)
    except _NOT_ENCODABLE:
        return fit_into_frame({n: value for n, value in headers.items() if _can_be_sent(n, value)})


def short_string(text: str | None) -> str | None:
    """The text, if it can be a property: text of 1 to 255 bytes."""
    if not isinstance(text, str) or not text:
        return None
    return text if len(text.encode("utf-8", "replace")) <= SHORT_STRING_BYTES else None


def replayed_at(letter: Letter) -> datetime | None:
    """When it was replayed last."""
    try:
        time = datetime.fromisoformat(str(letter.headers[REPLAYED_AT_HEADER]))
    except (KeyError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _can_be_sent(name: str, value: FieldValue) -> bool:
    try:
        size_of({name: value})
    except _NOT_ENCODABLE:
        return False
    return True
