"""The plan of exchanges and queues, without a broker."""

from __future__ import annotations

import pytest

from evworker.broker import (
    Binding,
    BrokerVersion,
    ConfigurationError,
    Queue,
    Topology,
    dead_letter_queue,
    events_topology,
)
from evworker.broker.topology import queue_topology

RABBIT_3, RABBIT_4 = BrokerVersion(3, 10), BrokerVersion(4, 0)


def plan(
    name: str = "billing.charge",
    *,
    delays_s: tuple[float, ...] = (1, 5),
    priorities: int | None = None,
    version: BrokerVersion = RABBIT_3,
) -> Topology:
    return queue_topology(
        name,
        exchange="events",
        patterns=["orders.*", "#.refunded"],
        delays_s=delays_s,
        priorities=priorities,
        version=version,
    )


def arguments(topology: Topology) -> dict[str, dict[str, str | int]]:
    return {queue.name: dict(queue.arguments) for queue in topology.queues}


def test_a_queue_comes_with_its_dead_letters_its_retries_and_its_bindings() -> None:
    topology = plan(delays_s=(5, 1, 5))
    assert [queue.name for queue in topology.queues] == [
        "billing.charge.dlq",  # first: what points to it comes later
        "billing.charge",
        "billing.charge.quarantine",
        "billing.charge.retry.1s",
        "billing.charge.retry.5s",
    ]
    assert topology.bindings == (
        Binding("billing.charge", "events", "orders.*"),
        Binding("billing.charge", "events", "#.refunded"),
    )


@pytest.mark.parametrize("version", [RABBIT_3, RABBIT_4, BrokerVersion(4, 3)])
def test_every_queue_that_can_lose_messages_is_told_not_to(version: BrokerVersion) -> None:
    by_name = arguments(plan(version=version))
    for name, given in by_name.items():
        assert given["x-queue-type"] == "quorum", name
        limit = given["x-delivery-limit"]
        assert isinstance(limit, int)
        assert limit > 0, "-1 loses messages on 3.x, and none drops them on 4.x"
        assert "x-expires" not in given, "an expired queue takes its messages with it"
    assert by_name["billing.charge"] | {"x-delivery-limit": 0} == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 0,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "billing.charge.dlq",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert by_name["billing.charge.retry.5s"] | {"x-delivery-limit": 0} == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 0,
        "x-message-ttl": 5_000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "billing.charge",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert by_name["billing.charge.dlq"].keys() == {"x-queue-type", "x-delivery-limit"}


def test_a_priority_queue_is_classic_until_quorum_queues_can_do_it() -> None:
    for version in (RABBIT_3, RABBIT_4):
        assert arguments(plan(priorities=5, version=version))["billing.charge"] == {
            "x-queue-type": "classic",
            "x-max-priority": 5,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "billing.charge.dlq",
            "x-overflow": "reject-publish",
        }
    strict = arguments(plan(priorities=5, version=BrokerVersion(4, 3)))["billing.charge"]
    assert strict["x-queue-type"] == "quorum"
    assert "x-max-priority" not in strict


def test_the_unrouted_are_kept_and_bounded() -> None:
    topology = events_topology("shop")
    assert [exchange.name for exchange in topology.exchanges] == ["shop.unrouted", "shop"]
    assert dict(topology.exchanges[1].arguments) == {"alternate-exchange": "shop.unrouted"}
    assert (topology.exchanges[0].kind, topology.exchanges[1].kind) == ("fanout", "topic")
    (kept,) = topology.queues
    assert kept.name == "shop.unrouted"
    assert int(kept.arguments["x-max-length"]) > 0
    assert topology.bindings == (Binding("shop.unrouted", "shop.unrouted", "#"),)


def test_plans_add_up_without_repeating_themselves() -> None:
    both = plan("a") + plan("b") + plan("a") + events_topology()
    assert len(both.queues) == 11
    assert len(both.bindings) == 5
    assert Topology() + both == both


def test_a_dead_letter_queue_is_its_own() -> None:
    assert dead_letter_queue("a") == "a.dlq"
    assert dead_letter_queue("a.dlq") == "a.dlq"


def test_names_that_the_broker_would_refuse_are_refused_first() -> None:
    with pytest.raises(ConfigurationError, match="begins with 'amq\\.'"):
        plan("amq.mine")
    with pytest.raises(ConfigurationError, match="longer than 255 bytes"):
        plan("ü" * 123)  # 246 bytes, and ".quarantine" makes it 257
    assert Queue("q" * 244, {}).name in arguments(plan("q" * 244, delays_s=())), "the longest"
