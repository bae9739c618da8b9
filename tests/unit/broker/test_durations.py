"""Durations as people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evworker.broker import Duration, DurationError, format_duration, parse_duration

LONGEST_MS = 49 * 86_400_000


@given(st.integers(min_value=1, max_value=LONGEST_MS))
def test_what_is_written_reads_back_to_the_millisecond(milliseconds: int) -> None:
    written = format_duration(milliseconds / 1_000)
    assert round(parse_duration(written) * 1_000) == milliseconds
    assert format_duration(parse_duration(written)) == written


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("2m", 120.0),
        ("1.5h", 5400.0),
        ("1d", 86_400.0),
        (" 5 s ", 5.0),
        (2, 2.0),
        (0.25, 0.25),
        (timedelta(minutes=3), 180.0),
        ("49d", 49 * 86_400.0),
    ],
)
def test_every_way_to_write_it(written: Duration, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(300.0, "5m"), (90, "90s"), (0.25, "250ms"), (3600, "1h"), (86_400, "1d"), (1.5, "1500ms")],
)
def test_it_is_written_in_the_largest_exact_unit(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    "wrong",
    ["5 minuets", "", "s", "-1s", "5", "1e3s", "5S", "1h30m", "5s\n5s", ".5s", "50d", "0s"],
)
def test_text_that_is_no_duration_is_refused_and_quoted(wrong: str) -> None:
    with pytest.raises(DurationError) as refused:
        parse_duration(wrong)
    assert repr(wrong) in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        -1,
        0.0001,
        float("nan"),
        float("inf"),
        10**400,
        LONGEST_MS / 1_000 + 1,
        timedelta(0),
        timedelta(days=50),
    ],
)
def test_a_number_out_of_bounds_is_refused(wrong: Duration) -> None:
    with pytest.raises(DurationError, match="between 1 millisecond and 49 days"):
        parse_duration(wrong)


@given(st.one_of(st.text(), st.floats(), st.integers()))
def test_anything_is_a_duration_or_a_duration_error(anything: Duration) -> None:
    try:
        seconds = parse_duration(anything)
    except DurationError:
        return
    assert 0.001 <= seconds <= 49 * 86_400
