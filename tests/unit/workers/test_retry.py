"""The retry policy: a pure function from attempts and errors to a delay, or to none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evworker.broker import ConsumerError, DurationError, format_duration
from evworker.workers import DeadLetter, Discard, Retry, RetryAfter, exponential, fixed

DAY_S = 86_400
LONGEST_S = 49 * DAY_S

seconds = st.integers(min_value=1, max_value=LONGEST_S).map(float)
delays = st.lists(seconds, max_size=8)


class CardDeclinedError(Exception):
    pass


class CardStolenError(CardDeclinedError):
    pass


def delay_of(retry: Retry, failed_attempts: int, error: BaseException) -> float | None:
    decision = retry.decide(error, failed_attempts=failed_attempts)
    return decision.delay_s if decision.what == "retry" else None


def gives_up_on(retry: Retry, error: BaseException) -> bool:
    return retry.decide(error, failed_attempts=1).what == "give-up"


@given(delays)
def test_each_failed_attempt_has_the_delay_at_its_place(delays: list[float]) -> None:
    retry = Retry(*delays)
    for failed, delay_s in enumerate(delays, start=1):
        assert delay_of(retry, failed, ValueError()) == delay_s


@given(delays, st.integers(min_value=1, max_value=1_000))
def test_after_the_last_delay_there_is_no_further_attempt(delays: list[float], more: int) -> None:
    retry = Retry(*delays)
    exhausted = len(delays) + more
    assert delay_of(retry, exhausted, ValueError()) is None
    assert delay_of(retry, exhausted, RetryAfter(1)) is None


@given(delays, st.integers(min_value=1, max_value=10))
def test_an_error_to_give_up_on_gets_no_second_attempt(delays: list[float], failed: int) -> None:
    retry = Retry(*delays, give_up_on=CardDeclinedError)
    for error in (CardDeclinedError(), CardStolenError()):
        assert gives_up_on(retry, error)
        assert delay_of(retry, failed, error) is None


def test_several_errors_may_be_given_up_on() -> None:
    retry = Retry("1s", give_up_on=(CardDeclinedError, KeyError))
    assert [
        gives_up_on(retry, error) for error in (CardStolenError(), KeyError(), IndexError())
    ] == [
        True,
        True,
        False,
    ]


def test_an_error_that_is_not_named_is_tried_again() -> None:
    retry = Retry("1s", give_up_on=CardStolenError)
    assert delay_of(retry, 1, CardDeclinedError()) == pytest.approx(1.0)


def test_delays_are_written_as_people_write_them() -> None:
    assert Retry("250ms", 2, "5m", timedelta(hours=1)).delays_s == (0.25, 2.0, 300.0, 3600.0)


@pytest.mark.parametrize("delay", ["5 minuets", "", "-1s", 0, "50d"])
def test_a_delay_that_cannot_be_is_refused_at_once(delay: str | float) -> None:
    with pytest.raises(DurationError):
        Retry(delay)
    with pytest.raises(DurationError):
        RetryAfter(delay)


@given(st.floats(min_value=0.001, max_value=LONGEST_S))
def test_a_wait_that_is_asked_for_is_never_cut_short(asked_s: float) -> None:
    delay_s = RetryAfter(asked_s).delay_s
    assert delay_s >= asked_s
    assert delay_s <= LONGEST_S


@given(st.integers(min_value=30, max_value=LONGEST_S))
def test_a_wait_that_is_asked_for_is_not_much_longer(asked_s: int) -> None:
    assert RetryAfter(asked_s).delay_s <= max(3 * asked_s, 1)


def test_waits_share_few_queues() -> None:
    names = {format_duration(RetryAfter(asked_s).delay_s) for asked_s in range(1, DAY_S + 1)}
    steps = "1s 2s 5s 10s 15s 30s 1m 2m 5m 10m 15m 30m 1h 2h 3h 6h 12h 1d"
    assert names == set(steps.split(" "))


@pytest.mark.parametrize(
    ("asked", "delay_s"),
    [
        ("1s", 1),
        ("1.001s", 2),
        (120, 120),
        ("2m", 120),
        (121, 300),
        ("12h", 43_200),
        ("25h", 172_800),
    ],
)
def test_a_wait_is_rounded_up_to_the_next_step(asked: str | int, delay_s: int) -> None:
    assert RetryAfter(asked).delay_s == delay_s


def test_a_wait_that_is_asked_for_replaces_the_delay_and_counts_as_an_attempt() -> None:
    retry = Retry("1s")
    assert delay_of(retry, 1, RetryAfter("2m")) == pytest.approx(120.0)
    assert delay_of(retry, 2, RetryAfter("2m")) is None
    assert "asked for another attempt in 2m" in str(RetryAfter("2m"))


def test_errors_to_give_up_on_may_come_in_any_iterable() -> None:
    for errors in ([CardDeclinedError, KeyError], {CardDeclinedError, KeyError}):
        retry = Retry("1s", give_up_on=errors)
        assert gives_up_on(retry, CardStolenError())
        assert gives_up_on(retry, KeyError())
        assert not gives_up_on(retry, IndexError())
    assert gives_up_on(Retry(give_up_on=iter([KeyError])), KeyError())
    assert isinstance(hash(Retry("1s", give_up_on=[KeyError])), int)


@pytest.mark.parametrize(
    "no_type", ["x", [KeyError()], [KeyError, "ValueError"], int, [object], (KeyError, None)]
)
def test_what_is_no_exception_type_can_not_be_given_up_on(no_type: Any) -> None:
    with pytest.raises(ConsumerError, match="is no exception type"):
        Retry("1s", give_up_on=no_type)


class ForgetfulError(RetryAfter):
    def __init__(self) -> None:  # without RetryAfter's own
        Exception.__init__(self, "come back")


def test_a_subclass_that_forgets_its_delay_has_one_all_the_same() -> None:
    assert delay_of(Retry("5s"), 1, ForgetfulError()) == 1.0
    assert delay_of(Retry(), 1, ForgetfulError()) is None


@given(delays.filter(bool), st.floats(min_value=0.01, max_value=1))
def test_jitter_only_lengthens_and_uses_known_waits(delays: list[float], jitter: float) -> None:
    retry = Retry(*delays, jitter=jitter)
    for failed, delay_s in enumerate(delays, start=1):
        wait_s = delay_of(retry, failed, ValueError())
        assert wait_s is not None
        assert delay_s <= wait_s <= delay_s * (1 + jitter) + 0.001
        assert wait_s in retry.waits_s


def test_a_budget_of_time_ends_it_before_the_attempts_do() -> None:
    retry = Retry("1m", "1m", "1m", within="90s")
    assert retry.decide(ValueError(), failed_attempts=1, failing_for_s=0).what == "retry"
    assert retry.decide(ValueError(), failed_attempts=2, failing_for_s=31).what == "dead-letter"


def test_the_horizon_is_all_waits_at_their_longest() -> None:
    assert Retry("1s", "5s").horizon_s == 6.0
    assert Retry("10s", "20s", jitter=0.5).horizon_s == 45.0
    assert Retry("1m", "1m", within="90s").horizon_s == 90.0
    assert Retry().horizon_s == 0.0


def test_handlers_and_policies_decide_the_end() -> None:
    retry = Retry("1s", discard_on=KeyError)
    whats = [
        retry.decide(error, failed_attempts=1).what
        for error in (DeadLetter("why"), Discard("why"), KeyError(), ValueError())
    ]
    assert whats == ["give-up", "discard", "discard", "retry"]


def test_back_off_helpers() -> None:
    assert fixed("10s", 3) == (10.0, 10.0, 10.0)
    assert exponential("1s", 5, factor=3, longest="30s") == (1.0, 3.0, 9.0, 27.0, 30.0)


def test_a_group_is_what_is_in_it() -> None:
    retry = Retry("1s", give_up_on=CardDeclinedError)
    one = ExceptionGroup("unhandled errors in a TaskGroup", [Discard("a")])
    assert retry.decide(one, failed_attempts=1).what == "discard"
    assert retry.decide(ExceptionGroup("two", [one, ValueError()]), failed_attempts=1).what == (
        "retry"
    )
    assert gives_up_on(retry, ExceptionGroup("two", [ValueError(), CardStolenError()]))
    assert gives_up_on(retry, ExceptionGroup("two", [one, DeadLetter("why")]))
    waits = ExceptionGroup("two", [RetryAfter(10), RetryAfter(30), ValueError()])
    assert delay_of(retry, 1, waits) == 30.0
