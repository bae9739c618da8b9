"""Reading the properties and headers that foreign clients write, however wrong they are.

pamqp decodes them as a frame arrives, and what it can't decode ends the whole connection, with
every consumer on it; the message comes back, and ends it again. A timestamp in microseconds does
that, or one id that is not UTF-8. No message may do this to all others: such a value becomes None
or readable text here, and the message goes its way, to its handler or to the dead-letter queue.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pamqp import decode

if TYPE_CHECKING:
    from pamqp.common import FieldTable

_read_timestamp = decode.timestamp


def install() -> None:
    """Make pamqp tolerant, in this process; may be called again."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = _table


def _short_string(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, value[1:end].decode("utf-8", "backslashreplace")


def _timestamp(value: bytes) -> tuple[int, datetime | None]:
    try:
        return _read_timestamp(value)
    except (ValueError, OverflowError, OSError):  # a year beyond 9999
        return 8, None


def _table(value: bytes) -> tuple[int, FieldTable]:
    end = 4 + int.from_bytes(value[:4])
    if end > len(value):
        raise ValueError("a header table is longer than its frame")
    table: FieldTable = {}
    offset = 4
    while offset < end:
        length, key = _short_string(value[offset:end])
        offset += length
        consumed, table[key] = decode.embedded_value(value[offset:])
        offset += consumed
    return end, table
