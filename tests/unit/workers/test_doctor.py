"""What `evworker doctor` makes of what it has seen: pure checks, without a broker."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from evworker.broker import BrokerAddress, BrokerVersion, Difference, Event
from evworker.broker.inspection import QueueCounts, Refusal
from evworker.workers import Context, Finding, Plugin, Retry, plan_topology
from evworker.workers.doctor import diagnose
from evworker.workers.finding import LEVELS, Observed
from evworker.workers.plugin import consumers_by_queue

V3_10 = BrokerVersion(3, 10, 8)
V4_0 = BrokerVersion(4, 0, 5)
V4_3 = BrokerVersion(4, 3, 5)


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str


class OrderShipped(Event, topic="orders.shipped"):
    order_id: str


async def on_any(event: Any, ctx: Context) -> None: ...


def in_a_thread(event: OrderPlaced, ctx: Context) -> None: ...


def plugin_of(
    handler: Any = on_any, *events: type[Event], plugin: str = "billing", **options: Any
) -> Plugin:
    made = Plugin(plugin)
    options = {"queue": "charge", "name": "charge", "retry": Retry("5s"), **options}
    made.consumer(*(events or (OrderPlaced,)), **options)(handler)
    return made


def seen(
    *plugins: Plugin,
    url: str = "amqp://localhost",
    version: BrokerVersion = V4_0,
    counts: dict[str, QueueCounts] | None = None,
    **changes: Any,
) -> Observed:
    """A broker that has all that is planned, and on which everything may be done."""
    plugins = plugins or (plugin_of(),)
    plan = plan_topology(plugins, version=version)
    observed = Observed(
        address=BrokerAddress.parse(url),
        version=version,
        exchange="events",
        plan=plan,
        consumers=consumers_by_queue(plugins),
        differences=(
            *(Difference("exchange", one.name, "same") for one in plan.exchanges),
            *(Difference("queue", one.name, "same") for one in plan.queues),
        ),
        counts={one.name: QueueCounts(0, 0) for one in plan.queues} | (counts or {}),
        refusals=(),
        takes_messages=True,
        ack_timeout_s=1_800.0,
    )
    return replace(observed, **changes)


def found(observed: Observed, check: str, subject: str | None = None) -> list[Finding]:
    """What was found by the check, besides what is in order."""
    return [
        finding
        for finding in diagnose(observed)
        if finding.check == check
        and finding.level != "ok"
        and (subject is None or finding.subject == subject)
    ]


def only(observed: Observed, check: str, subject: str | None = None) -> Finding:
    (finding,) = found(observed, check, subject)
    return finding


def but(observed: Observed, *differences: Difference) -> Observed:
    named = {(one.kind, one.name) for one in differences}
    rest = (one for one in observed.differences if (one.kind, one.name) not in named)
    return replace(observed, differences=(*rest, *differences))


def levels(observed: Observed) -> set[str]:
    return {finding.level for finding in diagnose(observed)}


def test_a_healthy_set_up_has_neither_problem_nor_warning() -> None:
    for version in (V3_10, V4_0, V4_3):
        assert levels(seen(version=version)) == {"ok", "note"}


def test_each_finding_that_is_more_than_a_note_says_what_to_do() -> None:
    observed = but(
        seen(
            plugin_of(timeout="1h", priorities=5, prefetch=200),
            url="amqp://guest:guest@example.org?heartbeat=0",
            refusals=(Refusal("consume", "charge", "403"), Refusal("publish", "", "403")),
            counts={"charge.dlq": QueueCounts(3, 1), "events.unrouted": QueueCounts(100_000, 0)},
        ),
        Difference("exchange", "events", "missing"),
    )
    serious = [one for one in diagnose(observed) if one.level in ("warning", "problem")]
    assert len(serious) >= 10
    assert all(one.fix for one in serious)


def test_what_is_told_has_the_documented_fields_and_levels() -> None:
    assert [field.name for field in fields(Finding)] == [
        "level",
        "check",
        "subject",
        "found",
        "fix",
    ]
    assert LEVELS == ("ok", "note", "warning", "problem")


# The way to the broker


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.1", "[::1]"])
def test_without_tls_on_the_same_host_is_in_order(host: str) -> None:
    assert not found(seen(url=f"amqp://{host}"), "address")


def test_without_tls_to_another_host_is_a_warning_that_names_it() -> None:
    finding = only(seen(url="amqp://me:secret@localhost,rabbit.example.org"), "address")
    assert finding.level == "warning"
    assert "no TLS to rabbit.example.org" in finding.found
    assert "amqps://" in finding.fix
    assert not found(seen(url="amqps://me:secret@rabbit.example.org"), "address")


def test_guest_on_another_host_is_a_warning() -> None:
    finding = only(seen(url="amqps://rabbit.example.org"), "address")
    assert (finding.level, "'guest'" in finding.found) == ("warning", True)
    assert "rabbitmqctl add_user" in finding.fix
    assert not found(seen(url="amqps://rabbit.example.org?auth=external"), "address")


def test_no_heartbeat_is_a_problem_and_a_long_one_a_note() -> None:
    assert only(seen(url="amqp://localhost?heartbeat=0"), "address").level == "problem"
    assert only(seen(url="amqp://localhost?heartbeat=600"), "address").level == "note"
    assert not found(seen(url="amqp://localhost?heartbeat=20"), "address")


def test_no_password_is_told() -> None:
    told = repr(diagnose(seen(url="amqp://me:hunter2@rabbit.example.org?heartbeat=0")))
    assert "hunter2" not in told


def test_a_broker_that_keeps_nothing_is_a_problem() -> None:
    finding = only(seen(version=BrokerVersion(4, 0, 5, is_embedded=True)), "version")
    assert finding.level == "problem"


@pytest.mark.parametrize("version", [BrokerVersion(4, 2, 6), BrokerVersion(4, 3, 0)])
def test_versions_that_let_nobody_look_are_named(version: BrokerVersion) -> None:
    assert only(seen(version=version), "version").level == "warning"


def test_a_broker_that_takes_no_messages_is_a_problem() -> None:
    finding = only(seen(takes_messages=False), "alarm")
    assert finding.level == "problem"
    assert "rabbitmqctl status" in finding.fix


# Topology


@pytest.mark.parametrize(
    ("kind", "name", "check", "means"),
    [
        ("exchange", "events", "topology", "nothing can be published"),
        ("exchange", "events.unrouted", "unrouted", "is dropped"),
        ("queue", "events.unrouted", "unrouted", "is dropped"),
        ("queue", "charge", "topology", "count as unrouted"),
        ("queue", "charge.retry.5s", "topology", "nowhere to wait"),
        ("queue", "charge.quarantine", "topology", "nowhere to run alone"),
        ("queue", "charge.dlq", "topology", "nowhere to go"),
    ],
)
def test_what_is_missing_is_a_problem_that_says_what_it_means(
    kind: Any, name: str, check: str, means: str
) -> None:
    finding = only(but(seen(), Difference(kind, name, "missing")), check)
    assert (finding.level, finding.subject) == ("problem", name)
    assert means in finding.found
    assert finding.fix == "`evworker topology apply`"


def test_what_is_missing_and_may_not_be_declared_needs_someone_who_may() -> None:
    observed = but(
        seen(refusals=(Refusal("declare", "charge", "403"),)),
        Difference("queue", "charge", "missing"),
    )
    assert "a user who may configure" in only(observed, "topology").fix


@pytest.mark.parametrize(
    ("name", "argument", "check"),
    [
        ("charge", "x-queue-type", "topology"),
        ("charge", "x-dead-letter-strategy", "dead-lettering"),
        ("charge.retry.5s", "x-overflow", "dead-lettering"),
        ("charge", "x-dead-letter-routing-key", "dead-lettering"),
        ("charge", "x-delivery-limit", "delivery-limit"),
        ("charge.quarantine", "x-overflow", "dead-lettering"),
        ("charge.dlq", "x-delivery-limit", "delivery-limit"),
        ("charge.retry.5s", "x-message-ttl", "topology"),
        ("events.unrouted", "x-max-length", "topology"),
    ],
)
def test_what_differs_is_a_problem_of_its_argument(name: str, argument: str, check: str) -> None:
    difference = Difference("queue", name, "different", argument, "this", "that", "migrate it")
    finding = only(but(seen(), difference), check)
    assert (finding.level, finding.subject) == ("problem", name)
    assert f"{argument} should be this, but is that" in finding.found
    assert finding.fix == "migrate it" or "rabbitmqctl delete_queue" in finding.fix


def test_an_exchange_without_its_alternate_drops_what_is_unrouted() -> None:
    difference = Difference(
        "exchange", "events", "different", "alternate-exchange", "events.unrouted", "none", "do"
    )
    finding = only(but(seen(), difference), "unrouted")
    assert "is dropped" in finding.found
    assert finding.fix == "do"


def test_what_may_not_be_compared_is_a_note() -> None:
    observed = but(seen(), Difference("queue", "charge", "forbidden"))
    finding = only(observed, "topology")
    assert (finding.level, "1 of the exchanges" in finding.found) == ("note", True)


def test_classic_priority_queues_are_told_for_what_they_lack() -> None:
    before = seen(plugin_of(priorities=5, prefetch=10), version=V4_0)
    assert [one.level for one in found(before, "dead-lettering")] == ["note"]
    assert [one.level for one in found(before, "delivery-limit")] == ["note"]
    after = seen(plugin_of(priorities=5, prefetch=10), version=V4_3)
    assert not found(after, "dead-lettering")
    assert not found(after, "delivery-limit")


# What waits


def test_letters_that_wait_are_a_note() -> None:
    finding = only(seen(counts={"charge.dlq": QueueCounts(1_234, 0)}), "dead-letters")
    assert (finding.level, finding.found) == ("note", "1,234 dead letters")
    assert finding.fix == "`evworker dlq show charge.dlq`"


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("charge.dlq", "dead-letters"),
        ("charge.retry.5s", "dead-letters"),
        ("events.unrouted", "unrouted"),
    ],
)
def test_whoever_consumes_where_nobody_should_is_a_warning(name: str, check: str) -> None:
    finding = only(seen(counts={name: QueueCounts(0, 1)}), check)
    assert (finding.level, finding.subject) == ("warning", name)


def test_workers_of_a_queue_are_no_finding() -> None:
    assert not found(seen(counts={"charge": QueueCounts(5, 3)}), "dead-letters")


@pytest.mark.parametrize(("messages", "level"), [(1, "note"), (100_000, "warning")])
def test_unrouted_events_are_a_note_and_a_warning_when_the_oldest_go(
    messages: int, level: str
) -> None:
    finding = only(seen(counts={"events.unrouted": QueueCounts(messages, 0)}), "unrouted")
    assert finding.level == level


# Permissions


@pytest.mark.parametrize(
    ("act", "name", "level"),
    [
        ("declare", "charge", "note"),
        ("bind", "charge", "warning"),
        ("consume", "charge", "problem"),
        ("consume", "charge.quarantine", "problem"),
        ("consume", "charge.dlq", "note"),
        ("publish", "", "problem"),
        ("publish", "events", "warning"),
    ],
)
def test_what_may_not_be_done_is_as_bad_as_what_comes_of_it(
    act: Any, name: str, level: str
) -> None:
    finding = only(seen(refusals=(Refusal(act, name, "ACCESS_REFUSED"),)), "permissions")
    assert finding.level == level
    assert "'guest' may not" in finding.found


def test_a_worker_whose_topology_someone_else_applies_is_in_order() -> None:
    refusals = (Refusal("declare", "charge", "403"), Refusal("bind", "charge", "403"))
    assert levels(seen(refusals=refusals)) == {"ok", "note"}


def test_the_command_that_grants_is_whole_and_quoted() -> None:
    plugin = plugin_of(queue="it's.mine")
    observed = seen(
        plugin,
        url="amqp://me:secret@localhost/my vhost",
        refusals=(Refusal("publish", "", "403"),),
    )
    fix = only(observed, "permissions").fix
    assert fix.startswith("`rabbitmqctl set_permissions -p 'my vhost' me '^(events(\\.unrouted)?|")
    assert "it'\"'\"'s\\.mine(\\.dlq|\\.quarantine|\\.retry\\..*)?|amq\\.default)$'" in fix
    assert "secret" not in fix


# Acknowledgement timeout


def test_a_timeout_over_the_brokers_is_a_problem() -> None:
    finding = only(seen(plugin_of(timeout="1h")), "ack-timeout", "charge")
    assert finding.level == "problem"
    assert "may run for 1h, but after 30m" in finding.found
    assert "consumer_timeout = 4320000" in finding.fix
    raised = seen(plugin_of(timeout="1h"), ack_timeout_s=4 * 3_600.0)
    assert not found(raised, "ack-timeout", "charge")


@pytest.mark.parametrize(
    ("prefetch", "concurrency", "timeout", "held"),
    [(20, 10, "5m", None), (60, 10, "5m", "30m"), (2, 1, "15m", "30m"), (5, 10, "29m", None)],
)
def test_waiting_for_a_handler_counts(
    prefetch: int, concurrency: int, timeout: str, held: str | None
) -> None:
    plugin = plugin_of(prefetch=prefetch, concurrency=concurrency, timeout=timeout)
    findings = found(seen(plugin), "ack-timeout", "charge")
    if held is None:
        assert not findings
        return
    (finding,) = findings
    assert finding.level == "warning"
    assert f"held for {held}" in finding.found
    assert f"prefetch={concurrency}" in finding.fix


def test_what_may_hold_an_event_is_told() -> None:
    findings = diagnose(seen(plugin_of(prefetch=20, concurrency=10, timeout="5m")))
    (told,) = (one.found for one in findings if one.found.startswith("handlers hold an event"))
    assert "for 10m at most, waiting included" in told
    assert "while another runs alone, from a quarantine," in told


def test_consumers_of_one_queue_share_its_prefetch() -> None:
    plugin = plugin_of(prefetch=10, concurrency=10, timeout="5m")
    plugin.consumer(
        OrderShipped, queue="charge", name="ship", prefetch=60, concurrency=60, timeout="5m"
    )(on_any)
    assert only(seen(plugin), "ack-timeout", "charge").level == "warning"
    assert not found(seen(plugin), "ack-timeout", "ship")


def test_no_timeout_is_a_warning_and_of_a_plain_function_a_note() -> None:
    assert only(seen(plugin_of(timeout=None)), "ack-timeout", "charge").level == "warning"
    assert only(seen(plugin_of(in_a_thread)), "ack-timeout", "charge").level == "note"


def test_that_the_brokers_limit_is_not_known_is_said() -> None:
    finding = only(seen(), "ack-timeout", "amqp://guest@localhost:5672/")
    assert "30m, its default; AMQP can't tell" in finding.found
    assert "--ack-timeout" in finding.fix


def test_a_broker_without_a_limit_has_no_finding() -> None:
    assert not found(seen(plugin_of(timeout="1d"), ack_timeout_s=None), "ack-timeout")


# Prefetch, priorities, shared queues


@pytest.mark.parametrize(
    ("prefetch", "concurrency", "warned"), [(20, 10, True), (14, 10, False), (2, 1, False)]
)
def test_priorities_with_much_taken_ahead_are_a_warning(
    prefetch: int, concurrency: int, warned: bool
) -> None:
    plugin = plugin_of(priorities=5, prefetch=prefetch, concurrency=concurrency)
    findings = found(seen(plugin, version=V3_10), "priorities")
    assert bool(findings) == warned
    for finding in findings:
        assert finding.level == "warning"
        assert finding.fix == f"prefetch={concurrency} for charge"


def test_retry_queues_of_4_0_to_4_2_mix_priorities() -> None:
    plugin = plugin_of(priorities=5, prefetch=10)
    assert only(seen(plugin, version=V4_0), "priorities").level == "note"
    assert only(seen(plugin, version=BrokerVersion(4, 2, 1)), "priorities").level == "note"
    assert not found(seen(plugin, version=V4_3), "priorities")
    assert not found(seen(plugin, version=V3_10), "priorities")


def test_a_prefetch_below_the_concurrency_leaves_handlers_idle() -> None:
    finding = only(seen(plugin_of(prefetch=2, concurrency=10)), "prefetch")
    assert (finding.level, "only 2 events" in finding.found) == ("note", True)


def test_consumers_that_share_a_queue_are_a_note_and_of_two_plugins_a_warning() -> None:
    plugin = plugin_of()
    plugin.consumer(OrderShipped, queue="charge", name="ship")(on_any)
    assert only(seen(plugin), "shared-queue").level == "note"
    other = plugin_of(on_any, OrderShipped, plugin="stock", name="ship")
    finding = only(seen(plugin_of(), other), "shared-queue")
    assert (finding.level, "billing, stock" in finding.found) == ("warning", True)
