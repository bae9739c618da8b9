"""Reading what no client should write: anything becomes something, and the rest is read right."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, decode, encode, frame, header
from pamqp.common import FieldValue

from evworker.broker import tolerance

BAD_TEXT = b"\x02\xff\xfe"
BAD_TEXT_READ = r"\xff\xfe"


@pytest.fixture(autouse=True)
def installed() -> None:
    tolerance.install()
    tolerance.install()  # again is allowed


def table(entry: bytes) -> bytes:
    return struct.pack(">I", len(entry)) + entry


def properties(**fields: bytes) -> commands.Basic.Properties:
    """Read from the bytes of a whole frame, as they arrive."""
    kind = commands.Basic.Properties
    flags = sum(kind.flags[name] for name in fields)
    payload = struct.pack(">HHQH", commands.Basic.frame_id, 0, 1, flags) + b"".join(
        fields[name] for name in kind.__slots__ if name in fields
    )
    data = struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"
    consumed, channel, read = frame.unmarshal(data)
    assert (consumed, channel) == (len(data), 1)
    assert isinstance(read, header.ContentHeader)
    return read.properties


@pytest.mark.parametrize("name", ["message_id", "message_type", "correlation_id", "content_type"])
def test_text_that_is_not_utf_8_is_readable_text(name: str) -> None:
    assert getattr(properties(**{name: BAD_TEXT}), name) == BAD_TEXT_READ


@pytest.mark.parametrize("seconds", [1_760_000_000_000_000, 2**63, 2**64 - 1])
def test_a_timestamp_beyond_the_calendar_is_none(seconds: int) -> None:
    read = properties(message_id=b"\x011", timestamp=struct.pack(">Q", seconds))
    assert read.timestamp is None
    assert read.message_id == "1"


def test_what_comes_behind_a_bad_value_is_read() -> None:
    read = properties(timestamp=struct.pack(">Q", 2**63), message_type=BAD_TEXT, app_id=b"\x04shop")
    assert (read.message_type, read.app_id) == (BAD_TEXT_READ, "shop")


def test_a_good_timestamp_is_as_it_was() -> None:
    read = properties(timestamp=struct.pack(">Q", 1_760_000_000))
    assert read.timestamp == datetime.fromtimestamp(1_760_000_000, UTC)


def test_headers_with_bad_names_and_times_keep_all_others() -> None:
    entries = (
        BAD_TEXT
        + b"I\x00\x00\x00\x07"
        + b"\x04timeT"
        + struct.pack(">Q", 2**63)
        + b"\x05tableF"
        + table(BAD_TEXT + b"t\x01")
        + b"\x04goodI\x00\x00\x00\x08"
    )
    assert properties(headers=table(entries)).headers == {
        BAD_TEXT_READ: 7,
        "time": None,
        "table": {BAD_TEXT_READ: True},
        "good": 8,
    }


def test_a_table_that_is_longer_than_its_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than its frame"):
        decode.METHODS["table"](struct.pack(">I", 100) + b"\x01a")


values = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.text(max_size=40) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=40), values, max_size=6))
def test_good_tables_are_read_as_pamqp_reads_them(
    headers: dict[str, FieldValue],
) -> None:
    written = encode.field_table(headers)
    assert decode.METHODS["table"](written) == decode.field_table(written)
    assert decode.METHODS["table"](written)[0] == len(written)


@given(st.binary(max_size=255))
def test_any_bytes_are_some_text(data: bytes) -> None:
    consumed, text = decode.METHODS["shortstr"](bytes([len(data)]) + data + b"more")
    assert consumed == len(data) + 1
    assert isinstance(text, str)
    text.encode()
