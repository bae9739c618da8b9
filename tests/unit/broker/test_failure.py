"""A failure, written into headers and read back, and its bounds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode, encode

from evworker.broker import Failure
from evworker.broker.failure import FAILURE_HEADERS, Reason
from evworker.broker.headers import size_of

NONE_YET = Failure.from_headers({})


class CardDeclinedError(Exception):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - with its traceback on it
        return caught


def failed(error: BaseException, *, attempts: int = 1, earlier: Failure = NONE_YET) -> Failure:
    return Failure.now(
        "failed",
        error,
        attempts=attempts,
        consumer="billing.charge",
        earlier=earlier,
        exchange="events",
        routing_key="orders.placed",
    )


def over_the_wire(failure: Failure) -> Failure:
    table = decode.field_table(encode.field_table(failure.to_headers()))[1]
    return Failure.from_headers(table)


def to_the_millisecond(time: datetime | None) -> datetime | None:
    return time and time.replace(microsecond=time.microsecond // 1_000 * 1_000)


def test_a_failure_survives_its_headers() -> None:
    failure = failed(raised(CardDeclinedError("no money")), attempts=3)
    again = over_the_wire(failure)
    assert again == Failure(
        reason="failed",
        error_type=f"{__name__}.CardDeclinedError",
        error_message="no money",
        traceback=failure.traceback,
        attempts=3,
        first_failed_at=to_the_millisecond(failure.first_failed_at),
        failed_at=to_the_millisecond(failure.failed_at),
        consumer="billing.charge",
        host=failure.host,
        origin_exchange="events",
        origin_routing_key="orders.placed",
        frame=f"{__name__}:raised",
    )
    assert failure.host
    assert failure.failed_at is not None
    assert datetime.now(UTC) - failure.failed_at < timedelta(minutes=1)


def test_the_traceback_ends_with_the_error_and_names_the_place() -> None:
    trace = failed(raised(CardDeclinedError("no money"))).traceback
    assert trace is not None
    assert trace.rstrip().endswith("CardDeclinedError: no money")
    assert "in raised" in trace


def test_errors_of_python_itself_need_no_module() -> None:
    failure = failed(ValueError("x"))
    assert failure.error_type == "ValueError"
    assert failure.traceback is None


def test_the_first_failure_is_remembered() -> None:
    first = over_the_wire(failed(ValueError("first")))
    second = Failure.now(
        "given-up",
        TypeError("second"),
        attempts=2,
        consumer="billing.charge",
        earlier=first,
        exchange="",
        routing_key="billing.charge",
    )
    assert second.first_failed_at == first.first_failed_at
    assert (second.origin_exchange, second.origin_routing_key) == ("events", "orders.placed")
    assert (second.error_type, second.reason, second.attempts) == ("TypeError", "given-up", 2)


@given(st.text(max_size=200), st.sampled_from(["a", "é", "…", "🐇", "\ud800"]))
def test_message_and_trace_are_bounded_and_encodable(text: str, filling: str) -> None:
    failure = failed(raised(ValueError(text + filling * 9_000)))
    assert failure.error_message is not None
    assert 4_000 < len(failure.error_message.encode()) <= 4 * 1024
    assert failure.traceback is not None
    assert 8_000 < len(failure.traceback.encode()) <= 8 * 1024
    assert over_the_wire(failure).error_message == failure.error_message


def test_a_surrogate_is_shown_as_its_escape() -> None:
    assert failed(ValueError("\ud800")).error_message == "\\ud800"


def test_an_error_whose_text_raises_is_a_failure_all_the_same() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    failure = failed(raised(UnspeakableError()))
    assert failure.error_message == "<its message can't be shown: RuntimeError>"
    assert str(failure.error_type).endswith("UnspeakableError")
    assert over_the_wire(failure).error_type == failure.error_type


def test_the_headers_are_scalars_of_which_each_is_known() -> None:
    headers = failed(raised(ValueError("x"))).to_headers()
    assert headers.keys() == FAILURE_HEADERS
    assert all(isinstance(value, (str, int)) for value in headers.values())
    largest = failed(raised(ValueError("🐇" * 100_000))).to_headers()
    assert size_of(largest) < 64 * 1024


def test_nothing_known_is_nothing_written() -> None:
    assert Failure("unknown").to_headers() == {"evw-reason": "unknown", "evw-attempt": 0}
    assert Failure.from_headers({}) == Failure("unknown")


@pytest.mark.parametrize(
    "reason", ["failed", "given-up", "undecodable", "invalid", "unwanted", "crashed"]
)
def test_every_reason_comes_back(reason: Reason) -> None:
    assert over_the_wire(Failure(reason)).reason == reason


def test_headers_that_someone_spoilt_count_as_absent() -> None:
    spoilt: dict[str, Any] = {
        "evw-reason": "because",
        "evw-attempt": "many",
        "evw-error-type": 5,
        "evw-error": b"\xff",
        "evw-failed-at": "yesterday",
        "evw-first-failed-at": 7,
        "x-death": "no list",
    }
    assert Failure.from_headers(spoilt) == Failure("unknown")
    assert Failure.from_headers({"evw-reason": ["a"], "evw-attempt": -3}) == Failure("unknown")
    assert Failure.from_headers({"evw-attempt": 2**63 - 1}).attempts == 0


def test_what_a_stranger_wrote_is_bounded_before_it_goes_on() -> None:
    written: Any = dict.fromkeys(FAILURE_HEADERS, "s" * 200_000)
    assert size_of(Failure.from_headers(written).to_headers()) < 96 * 1024


values: st.SearchStrategy[Any] = (
    st.none()
    | st.integers()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.just([])
    | st.lists(st.fixed_dictionaries({"reason": st.none() | st.just([]) | st.text()}))
)


@given(st.dictionaries(st.sampled_from([*sorted(FAILURE_HEADERS), "x-death"]), values))
def test_any_headers_can_be_read(headers: dict[str, Any]) -> None:
    failure = Failure.from_headers(headers)
    assert over_the_wire(failure).attempts == failure.attempts


def test_a_message_that_the_broker_gave_up_on_has_crashed() -> None:
    died_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    headers = failed(ValueError("before")).to_headers()
    death: Any = {"reason": "delivery_limit", "queue": "q", "time": died_at, "count": 1}
    failure = Failure.from_headers(headers | {"x-death": [death, {"reason": "expired"}]})
    assert (failure.reason, failure.failed_at) == ("crashed", died_at)
    assert failure.error_message == "before"


def test_a_message_that_waited_for_its_retry_has_not_crashed() -> None:
    headers = failed(ValueError("before")).to_headers()
    death: Any = {"reason": "expired", "queue": "q.retry.5s", "count": 1}
    assert Failure.from_headers(headers | {"x-death": [death]}).reason == "failed"


def through_the_machinery(call: Callable[[], object]) -> BaseException:
    """What `call` raises, with frames before it that are called the worker's."""
    worker = {"__name__": "evworker.workers.execution", "call": call}
    exec("def execute():\n    call()", worker)
    try:
        worker["execute"]()  # type: ignore[operator]
    except BaseException as caught:  # noqa: BLE001 - as above
        # Without this function's own frame, as the worker catches it.
        return caught.with_traceback(caught.__traceback__ and caught.__traceback__.tb_next)
    raise AssertionError


def test_a_trace_begins_in_the_users_code() -> None:
    def charge() -> None:
        raise CardDeclinedError("no money")

    trace = failed(through_the_machinery(charge)).traceback or ""
    assert "in charge" in trace.splitlines()[1]
    assert "in execute" not in trace


def test_a_trace_of_the_machinery_alone_is_not_lost() -> None:
    trace = failed(through_the_machinery("no function")).traceback or ""  # type: ignore[arg-type]
    assert "in execute" in trace
