"""A message's properties as they came, byte by byte.

What a broker does not have to understand it hands on untouched. Decoded and encoded again, a
header would change: doubles shrink, integers change their size, text that is not UTF-8 is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime

from pamqp import decode
from pamqp.common import FieldTable

from evworker.broker.embedded.refusals import Code, Refusal

BASIC_CLASS = 60

_PROPERTIES = {  # name: (flag, size); a size of 0 is a short string, one of -1 a table
    "content_type": (1 << 15, 0),
    "content_encoding": (1 << 14, 0),
    "headers": (1 << 13, -1),
    "delivery_mode": (1 << 12, 1),
    "priority": (1 << 11, 1),
    "correlation_id": (1 << 10, 0),
    "reply_to": (1 << 9, 0),
    "expiration": (1 << 8, 0),
    "message_id": (1 << 7, 0),
    "timestamp": (1 << 6, 8),
    "type": (1 << 5, 0),
    "user_id": (1 << 4, 0),
    "app_id": (1 << 3, 0),
    "cluster_id": (1 << 2, 0),
}
_LAYOUT = [(name, flag, size) for name, (flag, size) in _PROPERTIES.items()]
_VALUE_BYTES = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"suU", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8),
    ord("D"): 5,
    ord("V"): 0,
}
_COUNTED = b"SxAF"  # four bytes say how many follow


class Content:
    """The properties of one message."""

    __slots__ = ("raw", "spans")

    def __init__(self, raw: bytes) -> None:
        """Raises Refusal for what is no list of properties."""
        self.raw = raw
        """The flags and the properties, as they stand in a content header."""
        self.spans: dict[str, bytes] = {}
        flags = int.from_bytes(raw[:2])
        offset = 2
        try:
            for name, flag, size in _LAYOUT:
                if flags & flag:
                    end = offset + (size if size > 0 else _counted(raw, offset, 4 if size else 1))
                    self.spans[name] = raw[offset:end]
                    offset = end
        except IndexError:
            offset = -1
        if offset != len(raw) or flags & 3:
            raise Refusal(Code.SYNTAX_ERROR, "the properties of a message can't be decoded")

    def text(self, name: str) -> str | None:
        """A property that is a short string."""
        span = self.spans.get(name)
        return None if span is None else span[1:].decode("utf-8", "backslashreplace")

    def octet(self, name: str) -> int | None:
        """A property that is one byte."""
        span = self.spans.get(name)
        return None if span is None else span[0]

    def headers(self) -> dict[bytes, bytes]:
        """The headers' names and values, each value as it came, with its type before it."""
        table = self.spans.get("headers", b"\0\0\0\0")
        found: dict[bytes, bytes] = {}
        offset = 4
        try:
            while offset < len(table):
                start = _counted(table, offset, 1) + offset
                end = start + 1 + _size_of(table, start)
                found[table[offset + 1 : start]] = table[start:end]
                offset = end
        except (IndexError, KeyError):
            offset = -1
        if offset != len(table):
            raise Refusal(Code.SYNTAX_ERROR, "the headers of a message can't be decoded")
        return found

    def decoded_headers(self) -> FieldTable:
        """The headers as values, to compare them, without those that can't be decoded."""
        decoded: FieldTable = {}
        for name, value in self.headers().items():
            with suppress(ValueError):
                decoded[name.decode()] = decode.embedded_value(value)[1]
        return decoded

    def texts(self, header: str) -> tuple[str, ...]:
        """The strings of a header that is a list of them, such as CC."""
        if header.encode() not in self.headers():
            return ()
        listed = self.decoded_headers().get(header)
        if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
            raise Refusal(
                Code.PRECONDITION_FAILED, f"invalid '{header}' header: not an array of strings"
            )
        return tuple(str(each) for each in listed)

    def with_headers(self, added: Mapping[str, bytes], dropped: Iterable[str] = ()) -> Content:
        """The same properties with other headers: `added` are encoded values."""
        headers = self.headers()
        for name in dropped:
            headers.pop(name.encode(), None)
        headers.update((name.encode(), value) for name, value in added.items())
        spans = dict(self.spans)
        spans["headers"] = encoded_table(headers)
        if not headers:
            del spans["headers"]
        return _of(spans)

    def without(self, name: str) -> Content:
        """The same properties but one."""
        return _of({each: span for each, span in self.spans.items() if each != name})


def _of(spans: Mapping[str, bytes]) -> Content:
    flags = sum(_PROPERTIES[name][0] for name in spans)
    return Content(
        flags.to_bytes(2) + b"".join(spans[name] for name in _PROPERTIES if name in spans)
    )


def _counted(data: bytes, offset: int, size: int) -> int:
    """The bytes of a string or table whose length stands in its first `size` bytes."""
    if offset + size > len(data):
        raise IndexError
    return size + int.from_bytes(data[offset : offset + size])


def _size_of(data: bytes, offset: int) -> int:
    """The bytes of the value whose type stands at the offset, without the type."""
    kind = data[offset]
    return _counted(data, offset + 1, 4) if kind in _COUNTED else _VALUE_BYTES[kind]


def encoded_text(value: str) -> bytes:
    data = value.encode()
    return b"S" + len(data).to_bytes(4) + data


def encoded_long(value: int) -> bytes:
    return b"l" + value.to_bytes(8, signed=True)


def encoded_moment(value: datetime) -> bytes:
    return b"T" + int(value.timestamp()).to_bytes(8)


def encoded_array(values: Iterable[bytes]) -> bytes:
    data = b"".join(values)
    return b"A" + len(data).to_bytes(4) + data


def encoded_table(fields: Mapping[bytes, bytes]) -> bytes:
    """A table without its type."""
    data = b"".join(bytes((len(name),)) + name + value for name, value in fields.items())
    return len(data).to_bytes(4) + data
