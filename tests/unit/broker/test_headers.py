"""Headers: what may be sent, and what must not be sent again."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, encode

from evworker.broker import HeadersError
from evworker.broker.headers import (
    FRAME_BUDGET_BYTES,
    HEADERS_LIMIT_BYTES,
    checked_headers,
    fit_into_frame,
    kept_headers,
    size_of,
)


def over_the_wire(headers: Any) -> dict[str, Any]:
    return dict(decode.field_table(encode.field_table(headers))[1])


def test_scalars_arrive_as_they_were() -> None:
    headers: dict[str, Any] = {
        "text": "Straße",
        "number": -5,
        "half": 0.5,
        "yes": True,
        "nothing": None,
    }
    assert over_the_wire(checked_headers(headers)) == headers


@pytest.mark.parametrize("value", [0.1, 1e300, -1e-300, 3.14159])
def test_a_float_that_32_bits_would_change_travels_as_text(value: float) -> None:
    assert over_the_wire(checked_headers({"h": value})) == {"h": repr(value)}


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**40])
def test_an_integer_beyond_63_bits_travels_as_text(value: int) -> None:
    assert over_the_wire(checked_headers({"h": value})) == {"h": str(value)}


@given(st.floats(allow_nan=False) | st.integers())
def test_no_number_is_changed_on_its_way(value: float) -> None:
    arrived = over_the_wire(checked_headers({"h": value}))["h"]
    assert type(value)(arrived) == value


@pytest.mark.parametrize(
    "name",
    ["evw-attempt", "x-death", "x-anything", "CC", "BCC"],
)
def test_names_that_are_someone_elses_are_refused(name: str) -> None:
    with pytest.raises(HeadersError, match=f"the header '{name}' can't be set"):
        checked_headers({name: "v"})


@pytest.mark.parametrize("name", ["", "n" * 129, "ü" * 65, "\ud800", 5])
def test_names_that_amqp_would_cut_or_refuse_are_refused(name: str) -> None:
    with pytest.raises(HeadersError, match="header name"):
        checked_headers({name: "v"})


def test_the_longest_name_arrives_whole() -> None:
    assert over_the_wire(checked_headers({"n" * 128: 1})) == {"n" * 128: 1}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1], "list"),
        ({"a": 1}, "dict"),
        (b"bytes", "bytes"),
        (datetime.now(UTC), "datetime"),
        (object(), "object"),
    ],
    ids=["list", "dict", "bytes", "datetime", "object"],
)
def test_only_scalars_can_be_sent(value: Any, kind: str) -> None:
    with pytest.raises(HeadersError, match=f"the header 'h' is a {kind}; only text"):
        checked_headers({"h": value})


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(HeadersError, match="the header value of 'h' is not valid Unicode"):
        checked_headers({"h": "\ud800"})


def test_headers_up_to_the_bound_can_be_sent_and_no_more() -> None:
    room = HEADERS_LIMIT_BYTES - size_of({"h": ""})
    assert size_of(checked_headers({"h": "v" * room})) == HEADERS_LIMIT_BYTES
    with pytest.raises(HeadersError, match="65,537 bytes and at most 65,536"):
        checked_headers({"h": "v" * (room + 1)})


def test_what_brokers_add_is_not_sent_again() -> None:
    brokers_own: dict[str, Any] = {
        "x-death": [{"count": 1}],
        "x-delivery-count": 3,
        "x-acquired-count": 3,
        "x-first-death-queue": "q",
        "x-first-death-reason": "rejected",
        "x-last-death-queue": "q",
        "x-stream-offset": 7,
        "x-opt-anything": 1,
        "CC": ["copy"],
        "BCC": ["copy"],
    }
    kept: dict[str, Any] = {"evw-attempt": 2, "x-user": "u", "tenant": "t", "cc": "mine"}
    assert kept_headers(brokers_own | kept) == kept
    assert kept_headers(None) == {}


def test_whatever_was_received_can_be_sent_again() -> None:
    received: dict[str, Any] = {
        "latin": b"Stra\xdfe",
        "nested": {"latin": b"\xff", "list": [b"\xfe", {"deep": b"\xfd", "float": 1e300}]},
        "float": 1e300,
        "huge": 2**70,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "none": None,
        "flag": True,
    }
    with pytest.raises((TypeError, OverflowError, struct.error)):
        encode.field_table(received)
    arrived = over_the_wire(kept_headers(received))
    assert bytes(arrived["latin"]) == b"Stra\xdfe"
    assert arrived["float"] == "1e+300"
    assert arrived["huge"] == str(2**70)
    assert arrived["flag"] is True
    assert arrived["none"] is None


def test_headers_that_fit_a_frame_stay_as_they_are() -> None:
    headers: dict[str, Any] = {"a": "x" * 1000, "evw-error": "e" * 4096}
    assert fit_into_frame(headers) == headers


def test_the_largest_foreign_headers_make_room_for_the_failure() -> None:
    headers: dict[str, Any] = {
        "small": "s",
        "larger": "l" * 60_000,
        "largest": "l" * 70_000,
        "evw-traceback": "t" * 8192,
        "evw-error": "e" * 4096,
    }
    fitting = fit_into_frame(headers)
    assert fitting == {key: value for key, value in headers.items() if key != "largest"} | {
        "evw-dropped-headers": "largest"
    }
    assert size_of(fitting) <= FRAME_BUDGET_BYTES


def test_a_stranger_can_not_break_the_frame_by_using_our_prefix() -> None:
    headers: dict[str, Any] = {"evw-junk": "j" * 130_000, "evw-error": "e"}
    assert fit_into_frame(headers) == {"evw-error": "e", "evw-dropped-headers": "evw-junk"}


def test_the_list_of_what_was_dropped_is_bounded() -> None:
    headers: dict[str, Any] = {f"{n:03}" + "k" * 120: "v" * 20_000 for n in range(100)}
    fitting = fit_into_frame(headers)
    assert size_of(fitting) <= FRAME_BUDGET_BYTES
    assert len(str(fitting["evw-dropped-headers"])) <= 1024
