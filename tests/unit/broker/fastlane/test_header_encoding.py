"""Content headers as we write them: byte for byte as pamqp does."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from pamqp.header import ContentHeader

from evworker.broker.envelope import Envelope
from evworker.broker.errors import HeadersError
from evworker.broker.fastlane.content_header import decode_properties, encode_header
from evworker.broker.message import event_message
from evworker.broker.properties import message_properties
from evworker.broker.unconfirmed import NOT_ENCODABLE


def is_encodable(text: str) -> bool:
    try:
        return len(text.encode()) <= 255
    except UnicodeEncodeError:
        return False


def is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


SHORT_TEXT = st.text(max_size=80).filter(is_encodable)
TIMES = st.datetimes(
    min_value=datetime(1970, 1, 3),  # noqa: DTZ001 - the zone is drawn too
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-11)), None]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    SHORT_TEXT,
)
PROPERTIES = {
    "content_type": SHORT_TEXT,
    "content_encoding": SHORT_TEXT,
    "headers": st.dictionaries(SHORT_TEXT, SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
    "delivery_mode": st.sampled_from([1, 2]),
    "priority": st.integers(0, 255),
    "correlation_id": SHORT_TEXT,
    "reply_to": SHORT_TEXT,
    "expiration": SHORT_TEXT,
    "message_id": SHORT_TEXT,
    "timestamp": TIMES,
    "message_type": SHORT_TEXT,
    "user_id": SHORT_TEXT,
    "app_id": SHORT_TEXT,
}


@given(
    named=st.fixed_dictionaries({}, optional=PROPERTIES),
    body_bytes=st.integers(0, 2**64 - 1),
)
def test_all_properties_are_written_as_pamqp_writes_them(
    named: dict[str, Any], body_bytes: int
) -> None:
    properties = spec.Basic.Properties(**named)
    written = encode_header(properties, body_bytes)
    assert written == ContentHeader(body_size=body_bytes, properties=properties).marshal()
    assert decode_properties(written)[1] is None


@pytest.mark.parametrize(
    "named",
    [
        {"message_id": "i" * 256},
        {"message_type": "ü" * 128},
        {"app_id": "\ud800"},
        {"message_id": 5},
        {"content_type": b"text"},
        {"priority": 256},
        {"priority": -1},
        {"priority": "high"},
        {"timestamp": datetime(1960, 1, 1, tzinfo=UTC)},
        {"timestamp": 5},
        {"headers": {"h": object()}},
        {"headers": {"h": 2**63}},
        {"headers": {"h": "\ud800"}},
    ],
)
def test_what_amqp_can_not_carry_is_an_error_here_as_there(named: dict[str, Any]) -> None:
    properties = spec.Basic.Properties(**named)
    with pytest.raises((*NOT_ENCODABLE, struct.error)):
        ContentHeader(body_size=1, properties=properties).marshal()
    with pytest.raises(NOT_ENCODABLE):
        encode_header(properties, 1)


@given(
    named=st.fixed_dictionaries(
        {
            "id": SHORT_TEXT,
            "source": SHORT_TEXT,
            "topic": SHORT_TEXT,
            "time": st.datetimes(
                min_value=datetime(1960, 1, 3),  # noqa: DTZ001 - the zone is drawn too
                timezones=st.sampled_from([UTC, timezone(timedelta(hours=-11))]),
            ),
            "correlation_id": st.none() | st.text(max_size=300).filter(is_unicode),
        },
        optional={"traceparent": SHORT_TEXT},
    ),
    priority=st.none() | st.integers(0, 255),
)
def test_an_event_has_the_same_header_by_the_short_way(
    named: dict[str, Any], priority: int | None
) -> None:
    envelope = Envelope(data=b"{}", **named)
    by_the_long_way = message_properties(envelope, priority, None)
    written = event_message(envelope, b"body", ("", "", True), priority, None)
    assert written.header == encode_header(by_the_long_way, 4)
    assert encode_header(written.properties, 4) == written.header


@pytest.mark.parametrize("name", ["id", "source", "topic"])
def test_an_event_whose_properties_are_too_long_is_refused_by_name(name: str) -> None:
    named: dict[str, Any] = {"id": "1", "source": "tests", "topic": "a"} | {name: "ü" * 128}
    envelope = Envelope(data=b"{}", time=datetime.now(UTC), correlation_id="1", **named)
    with pytest.raises(HeadersError, match=f"the {name} 'ü+'… is longer than 255 bytes"):
        event_message(envelope, b"body", ("", "", True), None, None)
