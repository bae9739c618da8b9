"""AMQP headers: what may be sent, and what must not be sent again.

AMQP 0-9-1 field tables look like dictionaries and are not: floats shrink to 32 bits, integers end
at 63, and what the broker itself adds to a message must not come back to it on a republish.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pamqp import encode

from evworker.broker.errors import HeadersError
from evworker.broker.failure import FAILURE_HEADERS

if TYPE_CHECKING:
    from pamqp.common import FieldTable, FieldValue

HEADERS_LIMIT_BYTES = 64 * 1024
"""What a publisher may attach. The whole header must fit one frame of 128 KiB, or the broker closes
the connection."""

FRAME_BUDGET_BYTES = 120 * 1024
"""What a republished message may carry, so that properties still fit the frame beside it."""

OWN_PREFIX = "evw-"

# What brokers add, strip or act upon. x-death makes 3.x drop a message as a dead-letter cycle; CC
# and BCC would route copies (https://www.rabbitmq.com/docs/dlx#effects, .../sender-selected).
_BROKERS_OWN = frozenset(
    ("x-death", "x-delivery-count", "x-acquired-count", "x-stream-offset", "CC", "BCC")
)
_BROKERS_OWN_PREFIXES = ("x-first-death-", "x-last-death-", "x-opt-")

_LONGEST_KEY = 128
_INTEGER_BOUND = 2**63

Scalar = str | int | float | bool | None


def checked_headers(headers: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Headers that a user wants on an event, fit to be sent; raises HeadersError.

    Only scalars: tables and lists vanish when a message enters a stream or crosses to AMQP 1.0.
    Floats and integers beyond 63 bits travel as text, since AMQP would change them.
    """
    checked: dict[str, Scalar] = {}
    for key, value in headers.items():
        if not isinstance(key, str) or not 0 < len(_utf8(key, "name")) <= _LONGEST_KEY:
            raise HeadersError(f"the header name {key!r} must be text of 1 to {_LONGEST_KEY} bytes")
        if key.startswith((OWN_PREFIX, "x-")) or key in _BROKERS_OWN:
            raise HeadersError(
                f"the header {key!r} can't be set: names with 'evw-' are evworker's, "
                "those with 'x-', CC and BCC the broker's"
            )
        if value is not None and not isinstance(value, (str, int, float)):
            raise HeadersError(
                f"the header {key!r} is a {type(value).__name__}; "
                "only text, numbers, booleans and None can be sent"
            )
        if isinstance(value, str):
            _utf8(value, f"value of {key!r}")
        checked[key] = _scalar(value)
    size = size_of(checked)
    if size > HEADERS_LIMIT_BYTES:
        raise HeadersError(
            f"the headers take {size:,} bytes and at most {HEADERS_LIMIT_BYTES:,} can be sent; "
            "put the data into the event"
        )
    return checked


def kept_headers(headers: Mapping[str, FieldValue] | None) -> FieldTable:
    """The headers of a received message that belong on its republished copy.

    Leaves out the broker's own, and makes the rest encodable again: pamqp reads text that is not
    UTF-8 as bytes, which it can't write.
    """
    return {
        key: _reencodable(value)
        for key, value in (headers or {}).items()
        if key not in _BROKERS_OWN and not key.startswith(_BROKERS_OWN_PREFIXES)
    }


def fit_into_frame(headers: FieldTable) -> FieldTable:
    """Leave out the largest headers that are not a failure's until the rest fits a frame.

    The prefix alone does not make a header evworker's: anyone can write it.
    """
    fitting = dict(headers)
    if size_of(fitting) <= FRAME_BUDGET_BYTES:
        return fitting
    foreign = sorted(
        (key for key in fitting if key not in FAILURE_HEADERS),
        key=lambda key: size_of({key: fitting[key]}),
    )
    dropped = []
    while size_of(fitting) > FRAME_BUDGET_BYTES and foreign:
        dropped.append(foreign.pop())
        del fitting[dropped[-1]]
    if dropped:
        fitting["evw-dropped-headers"] = ",".join(dropped)[:1024]
    return fitting


def size_of(headers: Mapping[str, FieldValue]) -> int:
    """Encoded bytes."""
    return len(encode.field_table(dict(headers)))


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise HeadersError(f"the header {what} is not valid Unicode: {error.reason}") from error


def _scalar(value: Scalar) -> Scalar:
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and not _survives_32_bits(value):
        return repr(value)
    if isinstance(value, int) and not -_INTEGER_BOUND <= value < _INTEGER_BOUND:
        return str(value)
    return value


def _survives_32_bits(value: float) -> bool:
    if not math.isfinite(value):
        return False  # the broker can't read it, and ends the whole connection
    try:
        return bool(struct.unpack(">f", struct.pack(">f", value))[0] == value)
    except OverflowError:
        return False


def _reencodable(value: FieldValue) -> FieldValue:
    match value:
        case str():
            return value
        case bytes():
            return bytearray(value)
        case dict():
            return {key: _reencodable(inner) for key, inner in value.items()}
        case list():
            return [_reencodable(inner) for inner in value]
        case float() | int():
            return _scalar(value)
    return value
