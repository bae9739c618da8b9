"""An event as a row of the outbox: checked now, since nobody can be told later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

import msgspec

from evworker.broker.database.tables import ID_CHARACTERS
from evworker.broker.durations import Duration, parse_duration
from evworker.broker.envelope import Envelope
from evworker.broker.errors import ConfigurationError, HeadersError
from evworker.broker.headers import Scalar, checked_headers
from evworker.broker.properties import check_properties


class Row(NamedTuple):
    """The columns of a row that tell the event; `body` is the envelope as it goes onto the wire."""

    event_id: str
    topic: str
    key: str | None
    body: bytes
    priority: int | None
    headers: bytes | None


class Schedule(NamedTuple):
    """When the rows may go: at once, or so long after now by the database's clock, or at a moment.

    Of the two one is given at most.
    """

    delay_s: float | None = None
    at: datetime | None = None

    @classmethod
    def of(cls, delay: Duration | None, at: datetime | None) -> Schedule:
        """Raises DurationError for a delay that can't be read, or ConfigurationError."""
        if delay is not None and at is not None:
            raise ConfigurationError("delay= and at= exclude each other; give one of them")
        if at is not None and at.utcoffset() is None:
            raise ConfigurationError(
                f"at={at} has no time zone; write datetime.now(UTC) + timedelta(…)"
            )
        return cls(None if delay is None else parse_duration(delay), at)


AT_ONCE = Schedule()


def rows_of(
    envelopes: Iterable[Envelope], priority: int | None, headers: Mapping[str, Scalar] | None
) -> list[Row]:
    """The rows of these envelopes, all with one priority and the same headers.

    Raises HeadersError for whatever the broker would refuse of them.
    """
    encoded = encoded_headers(headers) if headers else None
    return [_row(envelope, priority, encoded) for envelope in envelopes]


def _row(envelope: Envelope, priority: int | None, headers: bytes | None) -> Row:
    try:
        check_properties(envelope, priority)
        body = envelope.encode()
        for name, text in (("id", envelope.id), ("key", envelope.key)):
            if text is not None:
                _check_name(name, text)
    except UnicodeEncodeError as error:  # a lone surrogate, in the id or the key
        raise HeadersError(
            f"{envelope.topic}: its id or key is not valid Unicode: {error.reason}"
        ) from error
    return Row(envelope.id, envelope.topic, envelope.key, body, priority, headers)


def _check_name(name: str, text: str) -> None:
    if len(text) > ID_CHARACTERS:
        raise HeadersError(f"the {name} {text[:40]!r}… is longer than {ID_CHARACTERS} characters")
    if "\0" in text:
        raise HeadersError(f"the {name} {text[:40]!r} holds a zero character, which none may")
    text.encode()


def encoded_headers(headers: Mapping[str, Scalar]) -> bytes:
    """Headers as the JSON that a row holds; raises HeadersError."""
    return msgspec.json.encode(
        {
            # JSON knows no infinity.
            name: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in checked_headers(headers).items()
        }
    )


def decoded_headers(encoded: bytes | None) -> dict[str, Scalar]:
    """The headers that `encoded_headers` wrote."""
    return {} if encoded is None else msgspec.json.decode(encoded, type=dict[str, Scalar])
