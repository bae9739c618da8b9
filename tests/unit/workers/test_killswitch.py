from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evworker.broker import ConsumerError
from evworker.workers import DeadLetter, Discard, HandlerTimeoutError, KillSwitch, RetryAfter
from evworker.workers.killswitch import SwitchState

SETTINGS = KillSwitch(ConnectionError, failures=3, share=0.5, window="10s", pause="5s")


def test_it_opens_once_enough_failed_within_the_window() -> None:
    switch = SwitchState(SETTINGS)
    assert [switch.failed(at) for at in (0.0, 1.0, 2.0)] == [False, False, True]
    assert switch.state == "open"
    assert switch.probe_due_s(4.0) == pytest.approx(3.0)


def test_failures_that_are_too_far_apart_open_nothing() -> None:
    switch = SwitchState(SETTINGS)
    assert not any(switch.failed(at) for at in range(0, 100, 6))


def test_failures_among_many_successes_open_nothing() -> None:
    switch = SwitchState(SETTINGS)
    for at in range(50):
        switch.succeeded(at / 10)
        switch.succeeded(at / 10)
        assert not switch.failed(at / 10)


def test_one_success_closes_it_and_forgets_the_past() -> None:
    switch = SwitchState(SETTINGS)
    for at in range(3):
        switch.failed(float(at))
    switch.probe()
    assert switch.failed(8.0), "a probe that fails opens it again"
    switch.probe()
    assert switch.succeeded(20.0)
    assert switch.state == "closed"
    assert not switch.failed(20.1)


@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "probe"]), st.floats(0, 5)), max_size=80))
def test_it_is_open_only_after_failures_and_closed_after_each_success(
    steps: list[tuple[str, float]],
) -> None:
    switch, now, failures_in_a_row = SwitchState(SETTINGS), 0.0, 0
    for what, waited in steps:
        now += waited
        if what == "ok":
            switch.succeeded(now)
            failures_in_a_row = 0
            assert switch.state == "closed"
        elif what == "bad":
            was_closed = switch.state == "closed"
            failures_in_a_row += 1
            if switch.failed(now) and was_closed:
                assert switch.state == "open"
        elif switch.state == "open":
            switch.probe()
        assert switch.probe_due_s(now) <= SETTINGS.pause_s + 1e-6
        if switch.state != "closed":
            assert failures_in_a_row >= 1


@pytest.mark.parametrize("options", [{"failures": 0}, {"share": 0.0}, {"share": 1.5}])
def test_settings_that_can_not_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConsumerError):
        KillSwitch(ConnectionError, **options)  # type: ignore[arg-type]


def test_attempts_that_fail_otherwise_count_as_attempts() -> None:
    switch = SwitchState(SETTINGS)
    for at in range(50):
        switch.failed_otherwise(at / 10)
        switch.failed_otherwise(at / 10)
        assert not switch.failed(at / 10)


def test_a_pause_that_ends_late_opens_nothing_again() -> None:
    switch = SwitchState(SETTINGS)
    for at in range(3):
        switch.failed(float(at))
    switch.probe()
    switch.succeeded(9.0)
    switch.probe()
    assert switch.state == "closed"


def test_what_a_handler_steers_by_matches_by_name_only() -> None:
    any_error = KillSwitch()
    assert any_error.matches(ValueError())
    for steering in (Discard("a"), DeadLetter("a"), RetryAfter(1)):
        assert not any_error.matches(steering)
    assert KillSwitch(RetryAfter).matches(RetryAfter(1))


def test_an_error_in_a_group_matches() -> None:
    refused = ExceptionGroup("unhandled errors in a TaskGroup", [ConnectionRefusedError()])
    assert SETTINGS.matches(ExceptionGroup("two", [ValueError(), refused]))
    assert not SETTINGS.matches(ExceptionGroup("one", [ValueError()]))


def test_a_handler_that_hangs_matches_as_any_timeout_does() -> None:
    late = HandlerTimeoutError("charge took longer than its timeout of 1s")
    assert KillSwitch(TimeoutError).matches(late)
    assert str(late) == "charge took longer than its timeout of 1s"


def test_what_it_remembers_does_not_grow_with_the_number_of_attempts() -> None:
    switch = SwitchState(SETTINGS)
    for attempt in range(100_000):
        switch.succeeded(attempt / 10_000)
    assert len(switch._spans) <= 101  # noqa: SLF001 - what its memory consists of
