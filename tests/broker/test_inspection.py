"""Asking a broker what is there and what one may do, and leaving no trace of having asked."""

from __future__ import annotations

import pytest
from aio_pika.abc import AbstractChannel

from evworker.broker import (
    Binding,
    Connection,
    Exchange,
    Publisher,
    Queue,
    Topology,
    apply_topology,
    events_topology,
)
from evworker.broker.inspection import (
    QueueCounts,
    all_differences,
    count_queue,
    may_bind,
    may_consume,
    may_declare,
    may_publish,
    may_publish_to_queues,
)
from evworker.broker.topology import queue_topology
from tests.broker.conftest import Take
from tests.broker.events import OrderPlaced
from tests.conftest import Cleanup


@pytest.fixture
async def plan(connection: Connection, cleanup: Cleanup, exchange: str) -> Topology:
    cleanup.queue(f"{exchange}.charge", family=True, retry_delays=("200ms",))
    cleanup.queue(f"{exchange}.urgent", family=True)
    for name in ("charge", "urgent"):
        cleanup.queue(f"{exchange}.{name}.quarantine")
    plan = events_topology(exchange)
    for name, delays_s, priorities in (("charge", [0.2], None), ("urgent", [], 5)):
        plan += queue_topology(
            f"{exchange}.{name}",
            exchange=exchange,
            patterns=["orders.*"],
            delays_s=delays_s,
            priorities=priorities,
            version=connection.version,
        )
    return plan


async def ask_everything(connection: Connection, plan: Topology, exchange: str) -> list[object]:
    things: list[Exchange | Queue] = [*plan.exchanges, *plan.queues]
    return [
        *[await may_declare(connection, thing) for thing in things],
        *[await may_bind(connection, binding) for binding in plan.bindings],
        *[await may_consume(connection, queue.name) for queue in plan.queues],
        await may_publish(connection, exchange),
        await may_publish_to_queues(connection),
    ]


async def test_asking_makes_nothing(connection: Connection, plan: Topology, exchange: str) -> None:
    assert not any(await ask_everything(connection, plan, exchange))
    states = {one.state for one in await all_differences(connection, plan)}
    assert states == {"missing"}
    assert [await count_queue(connection, queue.name) for queue in plan.queues] == [None] * len(
        plan.queues
    )


async def test_asking_harms_nothing_that_is_there(
    connection: Connection, publisher: Publisher, take: Take, plan: Topology, exchange: str
) -> None:
    await apply_topology(connection, plan)
    await publisher.publish(OrderPlaced(order_id="1"), id="before")
    for _ in range(3):
        assert not any(await ask_everything(connection, plan, exchange))
        assert {one.state for one in await all_differences(connection, plan)} == {"same"}
        for name in ("charge", "urgent"):
            counts = await count_queue(connection, f"{exchange}.{name}")
            assert counts == QueueCounts(messages=1, consumers=0)
    await publisher.publish(OrderPlaced(order_id="2"), id="after")
    for name in ("charge", "urgent"):
        taken = await take(f"{exchange}.{name}")
        assert [message.message_id for message in taken] == ["before", "after"], "still bound"
        assert not any(message.redelivered for message in taken), "never taken by the asking"
    assert await count_queue(connection, f"{exchange}.unrouted") == QueueCounts(0, 0)


async def test_what_one_may_not_do_is_told_and_in_whose_words(
    connection: Connection, cleanup: Cleanup, exchange: str
) -> None:
    # The broker refuses these names to everybody, as it refuses others to users without rights.
    queue, kept = Queue(f"amq.{exchange}", {}), Exchange(f"amq.{exchange}", "topic", {})
    for thing in (queue, kept):
        refusal = await may_declare(connection, thing)
        assert refusal is not None
        assert (refusal.act, refusal.name) == ("declare", thing.name)
        assert "ACCESS_REFUSED" in refusal.reason
    refusal = await may_bind(connection, Binding(f"{exchange}.charge", "", "orders.*"))
    assert refusal is not None
    assert (refusal.act, refusal.name) == ("bind", f"{exchange}.charge")
    assert await count_queue(connection, queue.name) is None


async def test_every_argument_that_differs_is_told(
    connection: Connection, onlooker: AbstractChannel, plan: Topology, exchange: str
) -> None:
    name = f"{exchange}.charge"
    await apply_topology(connection, Topology(plan.exchanges))
    await onlooker.declare_queue(
        name,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-message-ttl": 60_000,
            "x-dead-letter-exchange": "elsewhere",
        },
    )
    differences = await all_differences(connection, plan)
    told = {
        str(one.argument): (one.expected, one.found)
        for one in differences
        if (one.name, one.state) == (name, "different")
    }
    assert told == {
        "x-message-ttl": ("none", "60000"),
        "x-dead-letter-exchange": ("", "elsewhere"),
        "x-dead-letter-routing-key": (f"{name}.dlq", "none"),
        "x-dead-letter-strategy": ("at-least-once", "none"),
        "x-overflow": ("reject-publish", "none"),
        "x-delivery-limit": ("100", "none"),
    }
    assert await count_queue(connection, name) == QueueCounts(0, 0)


async def test_a_queue_of_another_type_is_told_without_end(
    connection: Connection, onlooker: AbstractChannel, plan: Topology, exchange: str
) -> None:
    name = f"{exchange}.charge"
    await onlooker.declare_queue(name, arguments={"x-max-priority": 5})
    told = [one for one in await all_differences(connection, plan) if one.name == name]
    assert all(one.state == "different" for one in told)
    assert len({one.argument for one in told}) == len(told)
