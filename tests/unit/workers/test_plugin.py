"""Plugins: what may run in one worker, and what it needs on a broker of which version."""

from __future__ import annotations

from typing import Any

import pytest

from evworker.broker import (
    Binding,
    BrokerVersion,
    ConfigurationError,
    ConsumerError,
    Event,
    Exchange,
    Queue,
    Topology,
)
from evworker.workers import Context, Plugin, Retry, Worker, check_plugins, plan_topology

V3_10 = BrokerVersion(3, 10, 8)
V4_0 = BrokerVersion(4, 0, 5)
V4_3 = BrokerVersion(4, 3, 0)
BROKER = "amqp://127.0.0.1:1/"


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str


async def on_any(event: Any, ctx: Context) -> None: ...


def billing(**options: Any) -> Plugin:
    plugin = Plugin("billing")
    plugin.consumer(OrderPlaced, **{"queue": "billing.charge", "name": "charge", **options})(on_any)
    return plugin


def queues(topology: Topology) -> dict[str, dict[str, str | int]]:
    return {queue.name: dict(queue.arguments) for queue in topology.queues}


# Plugins


@pytest.mark.parametrize("name", ["", "bill ing", ".billing", "zahlung€", "a/b"])
def test_a_name_that_can_not_be_part_of_a_queues_is_refused(name: str) -> None:
    with pytest.raises(ConsumerError, match="the plugin name"):
        Plugin(name)


def test_a_plugin_without_consumers_is_refused() -> None:
    with pytest.raises(ConsumerError, match="plugin 'empty' has no consumers"):
        check_plugins([billing(), Plugin("empty")])


def test_two_plugins_of_one_name_are_refused() -> None:
    with pytest.raises(ConsumerError, match="two plugins are named 'billing'"):
        check_plugins([billing(), billing(name="other", queue="other")])


def test_consumers_of_different_plugins_may_not_clash_either() -> None:
    other = Plugin("fraud")
    other.consumer(OrderPlaced, queue="billing.charge")(on_any)
    with pytest.raises(ConsumerError, match=r"share the queue 'billing\.charge'"):
        check_plugins([billing(), other])
    with pytest.raises(ConsumerError, match=r"share the queue 'billing\.charge'"):
        Worker([billing(), other], BROKER)


def test_plugins_are_objects_and_nothing_is_global() -> None:
    one, other = Plugin("billing"), Plugin("billing")
    one.consumer(OrderPlaced)(on_any)
    assert (len(one.consumers), len(other.consumers)) == (1, 0)
    assert repr(one) == "<Plugin 'billing': 1 consumers>"


# Workers


def test_a_queue_that_nobody_has_is_named_with_those_there_are() -> None:
    told = r"'bills'; there are billing\.charge"
    with pytest.raises(ConfigurationError, match=told):
        Worker([billing()], BROKER, queues=["bills"])
    with pytest.raises(ConfigurationError, match=told):
        Worker([billing()], BROKER, exclude_queues=["bills"])


def test_something_must_be_left_to_consume() -> None:
    with pytest.raises(ConfigurationError, match="no queue is left"):
        Worker([billing()], BROKER, exclude_queues=["billing.charge"])


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"prefetch": 0},
        {"prefetch": 65_536},
        {"max_events": 0},
    ],
    ids=str,
)
def test_numbers_that_would_never_consume_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        Worker([billing()], BROKER, **options)  # type: ignore[arg-type]


# Topology, as values: DESIGN's table, argument by argument


def test_the_exchange_keeps_what_nobody_is_bound_to() -> None:
    topology = plan_topology([billing()], version=V3_10)
    assert topology.exchanges == (
        Exchange("events.unrouted", "fanout", {}),
        Exchange("events", "topic", {"alternate-exchange": "events.unrouted"}),
    )
    assert queues(topology)["events.unrouted"] == {
        "x-queue-type": "quorum",
        "x-max-length": 100_000,
        "x-overflow": "drop-head",
        "x-delivery-limit": 1_000_000_000,
    }
    assert Binding("events.unrouted", "events.unrouted", "#") in topology.bindings


@pytest.mark.parametrize("version", [V3_10, V4_0, V4_3])
def test_a_consumer_has_a_queue_its_retries_and_its_dead_letters(version: BrokerVersion) -> None:
    plugin = billing(retry=Retry("1s", "5m", "1s"))
    topology = plan_topology([plugin], exchange="shop", version=version)
    planned = queues(topology)
    assert set(planned) == {
        "shop.unrouted",
        "billing.charge",
        "billing.charge.quarantine",
        "billing.charge.retry.1s",
        "billing.charge.retry.5m",
        "billing.charge.dlq",
    }
    assert planned["billing.charge"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 100,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "billing.charge.dlq",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert planned["billing.charge.retry.5m"] == {
        "x-queue-type": "quorum",
        "x-message-ttl": 300_000,
        "x-delivery-limit": 1_000_000_000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "billing.charge",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert planned["billing.charge.retry.1s"]["x-message-ttl"] == 1_000
    assert planned["billing.charge.dlq"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1_000_000_000,
    }
    assert planned["billing.charge.quarantine"] == planned["billing.charge"]
    assert Binding("billing.charge", "shop", "orders.placed") in topology.bindings


@pytest.mark.parametrize("version", [V3_10, V4_0, BrokerVersion(4, 2, 9)])
def test_priorities_are_a_classic_queue_before_4_3(version: BrokerVersion) -> None:
    planned = queues(plan_topology([billing(priorities=5)], version=version))
    # Neither a delivery limit nor at-least-once: a classic queue is refused with either.
    assert planned["billing.charge"] == {
        "x-queue-type": "classic",
        "x-max-priority": 5,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "billing.charge.dlq",
        "x-overflow": "reject-publish",
    }
    assert planned["billing.charge.retry.1s"]["x-queue-type"] == "quorum"


def test_priorities_are_a_quorum_queue_from_4_3_on() -> None:
    planned = queues(plan_topology([billing(priorities=5)], version=V4_3))["billing.charge"]
    assert planned["x-queue-type"] == "quorum"
    assert "x-max-priority" not in planned
    assert planned["x-dead-letter-strategy"] == "at-least-once"


def test_dead_letters_are_there_before_what_dead_letters_to_them() -> None:
    names = [queue.name for queue in plan_topology([billing()], version=V3_10).queues]
    assert names.index("billing.charge.dlq") < names.index("billing.charge")
    assert names.index("billing.charge") < names.index("billing.charge.retry.1s")


def test_a_shared_queue_is_planned_once_with_everybodys_bindings_and_delays() -> None:
    plugin = billing(retry=Retry("1s"))
    plugin.consumer("payments.*", name="other", queue="billing.charge", retry=Retry("1s", "9s"))(
        on_any
    )
    topology = plan_topology([plugin], version=V3_10)
    names = [queue.name for queue in topology.queues]
    assert sorted(names) == [
        "billing.charge",
        "billing.charge.dlq",
        "billing.charge.quarantine",
        "billing.charge.retry.1s",
        "billing.charge.retry.9s",
        "events.unrouted",
    ]
    patterns = {b.pattern for b in topology.bindings if b.queue == "billing.charge"}
    assert patterns == {"orders.placed", "payments.*"}


def test_an_attempt_without_another_needs_no_retry_queue() -> None:
    planned = queues(plan_topology([billing(retry=Retry())], version=V3_10))
    assert not [name for name in planned if ".retry." in name]


@pytest.mark.parametrize("queue", ["amq.charge", "x" * 252])
def test_a_queue_name_that_the_broker_would_refuse_is_refused(queue: str) -> None:
    with pytest.raises(ConfigurationError, match="the queue name"):
        plan_topology([billing(queue=queue)], version=V3_10)


def test_a_plan_is_a_value() -> None:
    assert plan_topology([billing()], version=V3_10) == plan_topology([billing()], version=V3_10)
    assert isinstance(plan_topology([billing()], version=V3_10).queues[0], Queue)
