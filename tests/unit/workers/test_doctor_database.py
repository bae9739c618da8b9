"""What `evworker doctor` makes of a database: pure checks of what was seen, without one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evworker.broker import BrokerAddress, BrokerVersion, Event
from evworker.broker.errors import (
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    SchemaError,
)
from evworker.broker.outbox.operating import OutboxStatus, RelayAtWork
from evworker.workers import Context, Finding, Plugin, Retry, plan_topology
from evworker.workers.database_checks import check_database, check_inbox, check_outbox
from evworker.workers.finding import DatabaseSeen, Observed
from evworker.workers.plugin import consumers_by_queue

DAY_S = 86_400.0
WHERE = "postgresql://shop@db/shop"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
RELAY = RelayAtWork("web-1", NOW, NOW, 100, 10)
EMPTY = OutboxStatus(
    ready=0,
    oldest_age_s=None,
    scheduled=0,
    backing_off=0,
    claimed=0,
    dead=0,
    sent_kept=0,
    per_second=0,
    relays=[RELAY],
    leases=[],
    blocked_keys=0,
)


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str


async def on_any(event: Any, ctx: Context) -> None: ...


def seen(
    database: DatabaseSeen | None = None, *, retry: Retry | None = None, **changes: Any
) -> Observed:
    """A transactional consumer, and nothing wrong with its broker."""
    plugin = Plugin("billing")
    plugin.consumer(OrderPlaced, name="charge", retry=retry or Retry("5s"), transactional=True)(
        on_any
    )
    version = BrokerVersion(4, 0, 5)
    observed = Observed(
        address=BrokerAddress.parse("amqp://localhost"),
        version=version,
        exchange="events",
        plan=plan_topology([plugin], version=version),
        consumers=consumers_by_queue([plugin]),
        differences=(),
        counts={},
        refusals=(),
        takes_messages=True,
        ack_timeout_s=None,
        database=database,
        inbox_window_s=7 * DAY_S,
    )
    return replace(observed, **changes)


def of_outbox(**changes: Any) -> list[Finding]:
    return list(check_outbox(seen(DatabaseSeen(address=WHERE, outbox=replace(EMPTY, **changes)))))


def test_a_transactional_consumer_needs_a_database() -> None:
    (finding,) = check_database(seen())
    assert (finding.level, finding.subject) == ("problem", "charge")
    assert "EVWORKER_DATABASE_URL" in finding.fix
    assert not list(check_database(seen(consumers={})))


@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        (SchemaError("the tables are missing"), "evworker outbox init"),
        (DatabaseRefusedError("no such user"), "user, password and name"),
        (DatabaseUnreachableError("nobody answers"), "start it"),
        (DatabaseError("it says no"), "what the database says"),
    ],
)
def test_a_database_that_can_not_be_used_is_a_problem_with_its_fix(
    fault: DatabaseError, fix: str
) -> None:
    observed = seen(DatabaseSeen(address=WHERE, fault=fault))
    (finding,) = check_database(observed)
    assert (finding.level, finding.subject, finding.found) == ("problem", WHERE, str(fault))
    assert fix in finding.fix
    assert not list(check_outbox(observed))


def test_a_healthy_database_is_in_order() -> None:
    observed = seen(DatabaseSeen(address=WHERE, outbox=EMPTY))
    findings = [*check_database(observed), *check_outbox(observed), *check_inbox(observed)]
    assert [finding.level for finding in findings] == ["ok", "ok", "ok"]
    assert "published by web-1" in findings[1].found


def test_dead_rows_are_a_problem() -> None:
    finding, _ = of_outbox(dead=2)
    assert finding.level == "problem"
    assert "2 committed events are dead rows" in finding.found
    assert "evworker outbox dead" in finding.fix


@pytest.mark.parametrize(("age_s", "level"), [(None, "note"), (5.0, "note"), (600.0, "problem")])
def test_old_rows_that_nobody_publishes_are_a_problem(age_s: float | None, level: str) -> None:
    (finding,) = of_outbox(ready=3, oldest_age_s=age_s, relays=[])
    assert finding.level == level
    assert "evworker outbox relay" in finding.fix


@pytest.mark.parametrize(
    ("changes", "said"), [({}, "waits for 10m"), ({"backing_off": 1}, "refus")]
)
def test_old_rows_beside_a_relay_are_a_warning(changes: dict[str, int], said: str) -> None:
    _, finding = of_outbox(ready=3, oldest_age_s=600.0, **changes)
    assert finding.level == "warning"
    assert said in finding.found


@pytest.mark.parametrize(
    ("retry", "level"),
    [
        (Retry("5s", "12h"), "ok"),
        (Retry("3d", "4d"), "problem"),
        (Retry("2d", "4d", jitter=0.5), "problem"),
        (Retry("3d", "5d", within="6d"), "ok"),
    ],
)
def test_an_inbox_has_to_outlast_the_retries(retry: Retry, level: str) -> None:
    (finding,) = check_inbox(seen(retry=retry))
    assert (finding.level, finding.subject) == (level, "charge")
    assert ("--inbox-window above" in finding.fix) == (level == "problem")


@pytest.mark.parametrize(("days", "warned"), [(6, False), (8, True)])
def test_letters_that_an_inbox_has_forgotten_are_a_warning(days: int, *, warned: bool) -> None:
    died_at = datetime.now(UTC) - timedelta(days=days)
    findings = list(check_inbox(seen(oldest_letters={"charge.dlq": died_at})))[1:]
    assert bool(findings) == warned
    for finding in findings:
        assert (finding.level, finding.subject) == ("warning", "charge.dlq")
        assert "failed 8d ago" in finding.found
