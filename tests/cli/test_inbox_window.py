"""How long an inbox remembers: `evworker doctor` compares it, `evworker dlq replay` warns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from pamqp import commands as spec

from tests.cli.command import Command
from tests.cli.conftest import Exchange
from tests.conftest import Cleanup

WRITTEN = """
    from evworker.broker import Event
    from evworker.workers import Context, Plugin, Retry


    class OrderPlaced(Event, topic="orders.placed"):
        order_id: str


    billing = Plugin("billing")


    @billing.consumer(OrderPlaced, queue="PREFIX.charge", retry=Retry("20ms"), transactional=True)
    async def charge(event: OrderPlaced, ctx: Context) -> None: ...
"""


async def put(exchange: Exchange, queue: str, headers: Mapping[str, str]) -> None:
    channel = await exchange.connection.channel(confirms=True)
    properties = spec.Basic.Properties(headers=dict(headers), message_id="e-1")
    await channel.basic_publish(b"{}", exchange="", routing_key=queue, properties=properties)
    await channel.close()


@pytest.fixture
async def queue(evworker: Command, exchange: Exchange, cleanup: Cleanup) -> str:
    """The queue of a transactional consumer, with a letter that failed nine days ago."""
    queue = cleanup.queue(f"{exchange.name}.charge", retry_delays=("20ms",))
    evworker.write("shop.py", WRITTEN.replace("PREFIX", exchange.name))
    evworker.environment["EVWORKER_APP"] = "shop"
    applied = await evworker("topology", "apply")
    assert applied.code == 0, applied.err
    failed_at = (datetime.now(UTC) - timedelta(days=9)).isoformat()
    headers = {"evw-reason": "failed", "evw-failed-at": failed_at, "evw-first-failed-at": failed_at}
    await put(exchange, f"{queue}.dlq", headers)
    return queue


async def test_replay_warns_of_letters_that_an_inbox_has_forgotten(
    evworker: Command, queue: str
) -> None:
    planned = await evworker("dlq", "replay", queue, "--dry-run")
    assert planned.code == 0
    assert "warning: the oldest of them failed 9d" in planned.err
    assert "but inboxes remember 7d (--inbox-window)" in planned.err
    patient = await evworker("dlq", "replay", queue, "--dry-run", "--inbox-window", "30d")
    assert (patient.code, patient.err) == (0, "")
    replayed = await evworker("dlq", "replay", queue)
    assert (replayed.code, replayed.err.count("warning: the oldest of them failed 9d")) == (0, 1)


@pytest.mark.real_broker("an embedded one is itself a problem to doctor")
async def test_doctor_looks_at_the_database_too(evworker: Command, queue: str) -> None:
    nobody = await evworker("doctor", "--json")
    assert (nobody.code, problems(nobody.json)) == (1, [("database", "billing.charge")])

    evworker.environment["EVWORKER_DATABASE_URL"] = "sqlite:///shop.db"
    empty = await evworker("doctor", "--json")
    assert (empty.code, problems(empty.json)) == (1, [("database", "sqlite:///shop.db")])
    assert "evworker outbox init" in empty.out

    await evworker("outbox", "init")
    fit = await evworker("doctor", "--json")
    assert (fit.code, fit.err) == (0, "")
    levels = {
        (one["check"], one["subject"]): one["level"]
        for one in fit.json
        if one["check"] in ("database", "outbox", "inbox")
    }
    assert levels == {
        ("database", "sqlite:///shop.db"): "ok",
        ("outbox", "sqlite:///shop.db"): "note",
        ("inbox", "billing.charge"): "ok",
        ("inbox", f"{queue}.dlq"): "warning",
    }


def problems(findings: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(one["check"], one["subject"]) for one in findings if one["level"] == "problem"]


async def test_without_a_database_a_transactional_consumer_is_refused_before_anything_starts(
    evworker: Command, queue: str
) -> None:
    refused = await evworker("run", "--burst")
    assert refused.code == 2
    assert "database" in refused.error
    assert "billing.charge" in refused.error
