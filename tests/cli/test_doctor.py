"""`evworker doctor`, against brokers that are fit to keep the promises, and some that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from evworker.broker import dead_letter_queue
from tests.cli.command import Command, Result
from tests.cli.conftest import Exchange
from tests.conftest import Cleanup

pytestmark = pytest.mark.real_broker("an embedded one is itself a problem to doctor")

WRITTEN = """
    from evworker.broker import Event
    from evworker.workers import Context, Plugin, Retry


    class OrderPlaced(Event, topic="orders.placed"):
        order_id: str


    billing = Plugin("billing")


    @billing.consumer(OrderPlaced, queue="PREFIX.charge", retry=Retry("20ms"), OPTIONS)
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        raise RuntimeError("the bank is away")
"""


class Doctor:
    """The verb, on a plugin of one consumer."""

    def __init__(self, evworker: Command, exchange: Exchange) -> None:
        self.evworker = evworker
        self.exchange = exchange
        self.queue = f"{exchange.name}.charge"
        self.write("")

    def write(self, options: str) -> None:
        text = WRITTEN.replace("PREFIX", self.exchange.name).replace("OPTIONS", options)
        self.evworker.write("shop.py", text)

    async def declare(self, name: str, arguments: Mapping[str, str | int]) -> None:
        """A queue, as somebody makes it by hand."""
        channel = await self.exchange.connection.channel()
        await channel.queue_declare(name, durable=True, arguments=dict(arguments))
        await channel.close()

    async def delete(self, name: str) -> None:
        channel = await self.exchange.connection.channel()
        await channel.queue_delete(name)
        await channel.close()

    async def planned(self, name: str) -> dict[str, Any]:
        shown = (await self.evworker("topology", "show", "--json")).json
        return next(thing["arguments"] for thing in shown if thing["name"] == name)

    async def __call__(self, *arguments: str) -> Result:
        return await self.evworker("doctor", *arguments)


@pytest.fixture
async def doctor(evworker: Command, exchange: Exchange, cleanup: Cleanup) -> Doctor:
    """With everything in place."""
    cleanup.queue(f"{exchange.name}.charge", retry_delays=("20ms",))
    cleanup.queue(f"{exchange.name}.charge.quarantine")
    evworker.environment["EVWORKER_APP"] = "shop"
    doctor = Doctor(evworker, exchange)
    applied = await evworker("topology", "apply")
    assert applied.code == 0, applied.err
    return doctor


def findings(result: Result, check: str, subject: str) -> list[dict[str, str]]:
    """What was found of it, besides what is in order."""
    return [
        finding
        for finding in result.json
        if (finding["check"], finding["subject"]) == (check, subject) and finding["level"] != "ok"
    ]


def finding(result: Result, check: str, subject: str) -> dict[str, str]:
    (found,) = findings(result, check, subject)
    assert set(found) == {"level", "check", "subject", "found", "fix"}
    return found


def problems(result: Result) -> list[str]:
    return [one["subject"] for one in result.json if one["level"] == "problem"]


async def test_a_healthy_set_up_is_fit_and_nothing_is_changed(
    doctor: Doctor, evworker: Command, exchange: Exchange
) -> None:
    await evworker("publish", "orders.placed", '{"order_id": "7"}')
    for _ in range(2):
        result = await doctor()
        assert (result.code, result.err) == (0, "")
        *lines, last = result.out.splitlines()
        assert last.startswith("fit to keep the promises: ")
        levels = {line.split()[0] for line in lines}
        assert levels == {"ok", "note", "fix:"}
        assert "2 exchanges and 5 queues as planned" in result.out
    compared = await evworker("topology", "diff")
    assert compared.code == 0
    assert len(await exchange.published()) == 1
    worked = await evworker("run", "--max-events", "1")
    assert worked.code == 0, worked.err


async def test_the_fields_are_stable(doctor: Doctor) -> None:
    result = await doctor("--json")
    assert (result.code, result.err) == (0, "")
    assert all(list(one) == ["level", "check", "subject", "found", "fix"] for one in result.json)
    assert {one["level"] for one in result.json} == {"ok", "note"}
    version = next(one for one in result.json if one["check"] == "version")
    assert version["found"].startswith(f"RabbitMQ {doctor.exchange.connection.version}")
    assert {one["check"] for one in result.json if one["level"] == "ok"} >= {
        *("version", "address", "topology", "dead-lettering", "delivery-limit", "unrouted"),
        *("dead-letters", "permissions", "ack-timeout"),
    }


async def test_a_missing_queue_is_a_problem_that_apply_mends(
    doctor: Doctor, evworker: Command
) -> None:
    await doctor.delete(f"{doctor.queue}.retry.20ms")
    result = await doctor("--json")
    assert result.code == 1
    assert result.error.startswith("1 problem, ")
    found = finding(result, "topology", f"{doctor.queue}.retry.20ms")
    assert found["level"] == "problem"
    assert found["fix"] == "`evworker topology apply`"

    told = await doctor()
    assert told.code == 1
    line, fix = next(
        (line, told.out.splitlines()[number + 1])
        for number, line in enumerate(told.out.splitlines())
        if line.startswith("problem")
    )
    assert f"{doctor.queue}.retry.20ms: there is no such queue" in line
    assert fix.strip() == "fix: `evworker topology apply`"

    await evworker("topology", "apply")
    assert (await doctor()).code == 0


async def test_a_changed_definition_is_a_problem_with_the_way_to_migrate(doctor: Doctor) -> None:
    name = f"{doctor.queue}.dlq"
    planned = await doctor.planned(name)
    await doctor.delete(name)
    await doctor.declare(name, {**planned, "x-message-ttl": 60_000})
    result = await doctor("--json")
    assert result.code == 1
    found = finding(result, "topology", name)
    assert found["level"] == "problem"
    assert "x-message-ttl should be none, but is 60000" in found["found"]
    assert f'queue="{doctor.queue}.v2"' in found["fix"]


async def test_a_dead_letter_exchange_by_hand_dead_letters_at_most_once(doctor: Doctor) -> None:
    await doctor.delete(doctor.queue)
    await doctor.declare(
        doctor.queue,
        {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead_letter_queue(doctor.queue),
        },
    )
    result = await doctor("--json")
    assert result.code == 1
    told = findings(result, "dead-lettering", doctor.queue)
    assert {one["level"] for one in told} == {"problem"}
    assert any("x-dead-letter-strategy should be at-least-once" in one["found"] for one in told)
    assert all("at most once" in one["found"] for one in told)
    assert all(f'queue="{doctor.queue}.v2"' in one["fix"] for one in told)
    limit = finding(result, "delivery-limit", doctor.queue)
    assert "x-delivery-limit should be 100, but is none" in limit["found"]


async def test_an_exchange_without_its_alternate_is_a_problem(
    doctor: Doctor, exchange: Exchange
) -> None:
    channel = await exchange.connection.channel()
    await channel.exchange_delete(exchange.name)
    await channel.exchange_declare(exchange.name, exchange_type="topic", durable=True)
    await channel.close()
    result = await doctor("--json")
    assert result.code == 1
    found = finding(result, "unrouted", exchange.name)
    assert found["level"] == "problem"
    assert "alternate-exchange should be" in found["found"]
    assert "--exchange" in found["fix"]
    assert problems(result) == [exchange.name]


async def test_an_alternate_exchange_that_is_missing_is_a_problem(
    doctor: Doctor, exchange: Exchange
) -> None:
    channel = await exchange.connection.channel()
    await channel.exchange_delete(f"{exchange.name}.unrouted")
    await channel.close()
    result = await doctor("--json")
    assert result.code == 1
    found = finding(result, "unrouted", f"{exchange.name}.unrouted")
    assert "an event that no queue is bound to is dropped" in found["found"]
    assert found["fix"] == "`evworker topology apply`"


async def test_a_timeout_over_the_brokers_is_a_problem(doctor: Doctor) -> None:
    doctor.write('timeout="45m"')
    result = await doctor("--json")
    assert result.code == 1
    found = finding(result, "ack-timeout", "billing.charge")
    assert found["level"] == "problem"
    assert "may run for 45m, but after 30m" in found["found"]
    assert 'timeout="…", below 30m' in found["fix"]
    assert (await doctor("--ack-timeout", "3h")).code == 0
    assert (await doctor("--ack-timeout", "0")).code == 0


async def test_a_long_wait_for_a_handler_is_a_warning_and_no_failure(doctor: Doctor) -> None:
    doctor.write("prefetch=100, concurrency=10")
    result = await doctor("--json")
    assert (result.code, result.err) == (0, "")
    found = finding(result, "ack-timeout", "billing.charge")
    assert found["level"] == "warning"
    assert "held for 50m" in found["found"]
    assert found["fix"] == "prefetch=10, or a shorter timeout"


async def test_priorities_with_a_large_prefetch_are_a_warning(
    doctor: Doctor, evworker: Command, cleanup: Cleanup
) -> None:
    await doctor.delete(doctor.queue)
    doctor.write("priorities=5, prefetch=50, concurrency=10")
    assert (await evworker("topology", "apply")).code == 0
    result = await doctor("--json")
    assert (result.code, result.err) == (0, "")
    found = next(
        one for one in findings(result, "priorities", doctor.queue) if one["level"] == "warning"
    )
    assert "up to 40 events" in found["found"]
    assert found["fix"] == "prefetch=10 for billing.charge"


async def test_letters_and_unrouted_events_are_notes_and_their_fixes_work(
    doctor: Doctor, evworker: Command, exchange: Exchange
) -> None:
    letters, unrouted = f"{doctor.queue}.dlq", f"{exchange.name}.unrouted"
    channel = await exchange.connection.channel(confirms=True)
    for name in (letters, unrouted):
        await channel.basic_publish(b"{}", exchange="", routing_key=name)
    await channel.close()
    result = await doctor("--json")
    assert (result.code, result.err) == (0, "")
    for check, name in (("dead-letters", letters), ("unrouted", unrouted)):
        found = finding(result, check, name)
        assert (found["level"], found["found"].startswith("1 ")) == ("note", True)
        verb = found["fix"].split("`")[1].removeprefix("evworker ")
        assert (await evworker(*verb.split(), "--json")).json


async def test_a_subscription_to_a_dead_letter_queue_is_a_warning(
    doctor: Doctor, exchange: Exchange
) -> None:
    async def ignore(message: object) -> None: ...

    channel = await exchange.connection.channel()
    await channel.basic_consume(f"{doctor.queue}.dlq", ignore)
    result = await doctor("--json")
    await channel.close()
    found = finding(result, "dead-letters", f"{doctor.queue}.dlq")
    assert (result.code, found["level"]) == (0, "warning")
    assert "rabbitmqctl list_consumers" in found["fix"]


async def test_no_heartbeat_is_a_problem(doctor: Doctor, broker_url: str) -> None:
    result = await doctor("--json", "-b", f"{broker_url}?heartbeat=0")
    assert result.code == 1
    assert any("heartbeat=0" in one["found"] for one in result.json if one["level"] == "problem")


async def test_without_plugins_it_is_a_mistake_of_usage(evworker: Command) -> None:
    result = await evworker("doctor")
    assert result.code == 2
    assert "no plugins" in result.error
