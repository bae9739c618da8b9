"""Which letters a filter means, and how its parts are read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evworker.broker import (
    Condition,
    ConfigurationError,
    Envelope,
    Failure,
    Letter,
    LetterFilter,
    parse_moment,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

FAILURE = Failure(
    "failed",
    error_type="shop.CardDeclined",
    failed_at=NOW,
    consumer="billing.charge",
    frame="shop.billing:charge",
)


def letter(data: bytes | None = b"{}", failure: Failure = FAILURE, **changes: Any) -> Letter:
    envelope = data and Envelope(id="1", source="till", topic="orders.placed", time=NOW, data=data)
    return Letter(
        **{
            "position": 1,
            "id": "1",
            "topic": "orders.placed",
            "envelope": envelope,
            "body": data or b"\xff",
            "content_type": None,
            "headers": {},
            "failure": failure,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("letters", "fits"),
    [
        (LetterFilter(), True),
        (LetterFilter(ids=("2", "1")), True),
        (LetterFilter(ids=("2",)), False),
        (LetterFilter(errors=("CardDeclined",)), True),
        (LetterFilter(errors=("shop.CardDeclined",)), True),
        (LetterFilter(errors=("Declined",)), False),
        (LetterFilter(reasons=("failed",)), True),
        (LetterFilter(reasons=("crashed",)), False),
        (LetterFilter(topics=("orders.*",)), True),
        (LetterFilter(topics=("orders.placed", "x")), True),
        (LetterFilter(topics=("payments.#",)), False),
        (LetterFilter(since=NOW), True),
        (LetterFilter(since=NOW + timedelta(seconds=1)), False),
        (LetterFilter(until=NOW), True),
        (LetterFilter(until=NOW - timedelta(seconds=1)), False),
        (LetterFilter(groups=(letter().group,)), True),
        (LetterFilter(groups=(letter().group[:4],)), True),
        (LetterFilter(groups=("x",)), False),
        (LetterFilter(ids=("1",), errors=("Other",)), False),
    ],
    ids=str,
)
def test_each_field_has_its_say(letters: LetterFilter, fits: bool) -> None:
    assert letters.matches(letter()) is fits


def test_of_a_letter_without_much_little_is_meant() -> None:
    bare = letter(None, Failure("unknown"), id=None, topic=None)
    assert LetterFilter().matches(bare)
    assert not LetterFilter(errors=("E",)).matches(bare)
    assert not LetterFilter(topics=("#",)).matches(bare)
    assert not LetterFilter(since=NOW - timedelta(days=10_000)).matches(bare)
    assert not LetterFilter(where=(Condition.parse("a!=1"),)).matches(bare)
    assert not LetterFilter(where=(Condition.parse("a!=1"),)).matches(letter(b"{"))


def test_a_time_without_a_zone_is_taken_as_utc() -> None:
    naive = letter(failure=Failure("failed", failed_at=NOW.replace(tzinfo=None)))
    assert LetterFilter(since=NOW, until=NOW).matches(naive)


DATA = {
    "order_id": "42",
    "total": 99.5,
    "price": "120.10",
    "count": 3,
    "paid": True,
    "note": None,
    "text": "a=b",
    "customer": {"id": 7, "country": "FR"},
    "items": [{"sku": "x"}, {"sku": "y"}],
    "at": "2026-11-23T10:00:00Z",
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("order_id=42", True),
        ('order_id="42"', True),
        ("order_id!=42", False),
        ("count=3", True),
        ("count=3.0", True),
        ("count=three", False),
        ("paid=true", True),
        ("paid=1", False),
        ("note=null", True),
        ("text=a=b", True),
        ("customer.id=7", True),
        ("customer.country!=FR", False),
        ('customer={"id": 7, "country": "FR"}', True),
        ("customer.name=x", False),
        ("customer.name!=x", True),
        ("items.1.sku=y", True),
        ("items.2.sku=y", False),
        ("total>99", True),
        ("total < 99.5", False),
        ("total<=99.5", True),
        ("price>=120.1", True),
        ("price>99", True),
        ("at>2026-11-23", True),
        ("at<2026-11-23", False),
        ("paid>0", False),
        ("nothing>0", False),
        ("customer>0", False),
    ],
)
def test_conditions_on_the_data(text: str, holds: bool) -> None:
    condition = Condition.parse(text)
    assert condition.holds(DATA) is holds
    assert LetterFilter(where=(condition,)).matches(letter(msgspec.json.encode(DATA))) is holds


@pytest.mark.parametrize("text", ["", "order_id", "=1", "<3"])
def test_a_condition_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ConfigurationError, match="can't read the condition"):
        Condition.parse(text)


@given(st.text(max_size=30), st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_any_condition_holds_or_not(value: str, data: Any) -> None:
    for sign in ("=", "!=", "<", ">="):
        assert Condition.parse(f"a{sign}{value}").holds({"a": data}) in {True, False}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("90s ago", NOW - timedelta(seconds=90)),
        (" 1.5d ", NOW - timedelta(hours=36)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-11-23T14:00Z", datetime(2026, 11, 23, 14, tzinfo=UTC)),
        ("2026-11-23T14:00+02:00", NOW),
        ("2026-11-23", datetime(2026, 11, 23).astimezone()),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2 fortnights", "2026-13-01", "9" * 400 + "d"])
def test_a_moment_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ConfigurationError, match="can't read the time"):
        parse_moment(text, NOW)


def test_a_filter_says_what_it_means() -> None:
    letters = LetterFilter(
        errors=("A", "B"), since=NOW, where=(Condition.parse("a>1"), Condition.parse("b=2"))
    )
    assert str(letters) == "error=A error=B since=2026-11-23T12:00:00+00:00 where=a>1 where=b=2"
    assert (str(LetterFilter()), LetterFilter().is_everything) == ("all", True)
    assert not letters.is_everything


def test_the_group_is_of_type_frame_and_consumer() -> None:
    def group(**changes: Any) -> str:
        return letter(failure=replace(FAILURE, **changes)).group

    same = group()
    assert same == group(error_message="other", attempts=9, failed_at=None, reason="given-up")
    others = {
        group(error_type="x.Y"),
        group(frame="a:b"),
        group(consumer="c"),
        group(reason="crashed"),
    }
    assert len(others | {same}) == 5
