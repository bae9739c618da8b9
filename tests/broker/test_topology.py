"""Making a plan so on a real broker, and explaining what differs from it."""

from __future__ import annotations

import pytest
from aio_pika import ExchangeType, Message
from aio_pika.abc import AbstractChannel

from evworker.broker import (
    Binding,
    BrokerError,
    Connection,
    Exchange,
    Publisher,
    Queue,
    Topology,
    TopologyMismatchError,
    apply_topology,
    count_messages,
    diff_topology,
    events_topology,
)
from evworker.broker.topology import queue_topology
from tests.broker.conftest import Bind, Take
from tests.broker.events import OrderPlaced
from tests.conftest import Cleanup


@pytest.fixture
def plan(connection: Connection, cleanup: Cleanup, exchange: str) -> Topology:
    """A whole consumer's: exchange, work queue, retries, dead letters."""
    cleanup.queue(f"{exchange}.charge", family=True, retry_delays=("200ms",))
    return events_topology(exchange) + queue_topology(
        f"{exchange}.charge",
        exchange=exchange,
        patterns=["orders.*"],
        delays_s=[0.2],
        priorities=None,
        version=connection.version,
    )


def names_of(plan: Topology) -> list[str]:
    return [exchange.name for exchange in plan.exchanges] + [queue.name for queue in plan.queues]


async def states(connection: Connection, topology: Topology) -> dict[str, str]:
    return {one.name: one.state for one in await diff_topology(connection, topology)}


async def test_a_plan_is_applied_as_often_as_one_likes(
    connection: Connection, plan: Topology, exchange: str
) -> None:
    names = names_of(plan)
    assert await states(connection, plan) == dict.fromkeys(names, "missing")
    assert await states(connection, plan) == dict.fromkeys(names, "missing"), "diff makes nothing"
    for _ in range(3):
        await apply_topology(connection, plan)
        assert await states(connection, plan) == dict.fromkeys(names, "same")
    async with Publisher(connection, exchange=exchange) as publisher:
        await publisher.publish(OrderPlaced(order_id="1"))
    assert await count_messages(connection, f"{exchange}.charge") == 1
    await apply_topology(connection, plan)
    assert await count_messages(connection, f"{exchange}.charge") == 1


async def test_a_retry_queue_gives_back_to_its_own_queue_only(
    connection: Connection, plan: Topology, onlooker: AbstractChannel, exchange: str
) -> None:
    await apply_topology(connection, plan)
    await onlooker.default_exchange.publish(Message(b"{}"), f"{exchange}.charge.retry.200ms")
    queue = await onlooker.get_queue(f"{exchange}.charge")
    async with queue.iterator(no_ack=True, timeout=10) as messages:
        message = await anext(messages)
    assert message.body == b"{}"
    assert message.routing_key == f"{exchange}.charge"


async def test_a_priority_queue_is_one_that_the_broker_accepts(
    connection: Connection, cleanup: Cleanup, onlooker: AbstractChannel, exchange: str
) -> None:
    name = cleanup.queue(f"{exchange}.urgent", family=True)
    topology = queue_topology(
        name,
        exchange=exchange,
        patterns=[],
        delays_s=[],
        priorities=5,
        version=connection.version,
    )
    await apply_topology(connection, topology)
    await apply_topology(connection, topology)
    for priority in (1, 3, 5):
        message = Message(str(priority).encode(), priority=priority)
        await onlooker.default_exchange.publish(message, name)
    queue = await onlooker.get_queue(name)
    bodies = [(await queue.get(no_ack=True)).body for _ in range(3)]
    assert bodies == [b"5", b"3", b"1"]


async def test_another_definition_is_explained_and_nothing_is_deleted(
    connection: Connection, plan: Topology, onlooker: AbstractChannel, exchange: str
) -> None:
    name = f"{exchange}.charge"
    (planned,) = (queue.arguments for queue in plan.queues if queue.name == name)
    await onlooker.declare_queue(
        name, durable=True, arguments={**planned, "x-dead-letter-routing-key": "elsewhere"}
    )
    await onlooker.default_exchange.publish(Message(b"precious"), name)

    with pytest.raises(TopologyMismatchError) as mismatch:
        await apply_topology(connection, plan)

    (difference,) = mismatch.value.differences
    assert (difference.kind, difference.name, difference.state) == ("queue", name, "different")
    assert (difference.argument, difference.expected, difference.found) == (
        "x-dead-letter-routing-key",
        f"{name}.dlq",
        "elsewhere",
    )
    assert f"should be {name}.dlq, but is elsewhere" in str(mismatch.value)
    assert f'queue="{name}.v2"' in str(mismatch.value), "the way to migrate"
    assert await count_messages(connection, name) == 1
    # The others were declared all the same.
    assert await states(connection, plan) == {
        one: "different" if one == name else "same" for one in names_of(plan)
    }


async def test_an_argument_that_is_missing_is_told(
    connection: Connection, cleanup: Cleanup, unique: str, onlooker: AbstractChannel
) -> None:
    name = cleanup.queue(unique)
    await onlooker.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    planned = Topology(queues=(Queue(name, {"x-queue-type": "quorum", "x-message-ttl": 5_000}),))
    (difference,) = await diff_topology(connection, planned)
    assert (difference.argument, difference.expected, difference.found) == (
        "x-message-ttl",
        "5000",
        "none",
    )
    assert await count_messages(connection, name) == 0


async def test_every_difference_is_told_at_once(
    connection: Connection, cleanup: Cleanup, unique: str, onlooker: AbstractChannel
) -> None:
    exchange = cleanup.exchange(unique)
    await onlooker.declare_exchange(exchange, ExchangeType.FANOUT, durable=True)
    names = [cleanup.queue(f"{unique}.{number}") for number in range(3)]
    for name in names:
        await onlooker.declare_queue(name, durable=True, arguments={"x-queue-type": "classic"})
    planned = Topology(
        (Exchange(exchange, "topic", {}),),
        tuple(Queue(name, {"x-queue-type": "quorum"}) for name in names),
    )
    with pytest.raises(TopologyMismatchError) as mismatch:
        await apply_topology(connection, planned)
    assert [one.name for one in mismatch.value.differences] == [exchange, *names]
    first = mismatch.value.differences[0]
    assert (first.argument, first.expected, first.found) == ("type", "topic", "fanout")
    assert "--exchange" in first.advice
    told = str(mismatch.value).splitlines()
    assert len(told) == 1 + 4 + 4, "a line for each difference, and each advice once"


async def test_a_refused_declaration_closes_nobody_elses_channel(
    connection: Connection, cleanup: Cleanup, unique: str, onlooker: AbstractChannel
) -> None:
    name = cleanup.queue(unique)
    await onlooker.declare_queue(name, durable=True, arguments={"x-queue-type": "classic"})
    consuming = await connection.channel()
    with pytest.raises(TopologyMismatchError):
        await apply_topology(
            connection, Topology(queues=(Queue(name, {"x-queue-type": "quorum"}),))
        )
    assert not consuming.is_closed
    assert (await consuming.queue_declare(name, passive=True)).queue == name


async def test_what_one_may_not_declare_is_taken_to_be_in_place(
    connection: Connection, publisher: Publisher, cleanup: Cleanup, exchange: str
) -> None:
    # Nobody may declare a name that begins with amq., as users without the right to configure may
    # declare none at all: the broker's answer is the same 403.
    channel = await connection.channel()
    name = cleanup.queue(str((await channel.queue_declare("", durable=True)).queue))
    assert name.startswith("amq.gen")
    planned = Topology(queues=(Queue(name, {}),), bindings=(Binding(name, exchange, "#"),))
    await apply_topology(connection, planned)
    await publisher.publish(OrderPlaced(order_id="1"))
    assert await count_messages(connection, name) == 1
    (difference,) = await diff_topology(connection, planned)
    assert (difference.name, difference.state) == (name, "forbidden")
    assert str(difference) == f"queue '{name}': forbidden"


async def test_a_binding_to_an_exchange_that_is_not_there_says_what_to_run(
    connection: Connection, cleanup: Cleanup, unique: str
) -> None:
    name = cleanup.queue(unique)
    planned = Topology(queues=(Queue(name, {}),), bindings=(Binding(name, f"{unique}.no", "#"),))
    with pytest.raises(
        BrokerError, match=rf"bind queue '{name}' to '{unique}\.no'.*topology apply"
    ):
        await apply_topology(connection, planned)


async def test_what_the_unrouted_queue_holds_survives_another_start(
    broker_url: str, publisher: Publisher, take: Take, bind: Bind, exchange: str
) -> None:
    await publisher.publish(OrderPlaced(order_id="1"))
    async with Publisher(broker_url, exchange=exchange):
        pass
    assert len(await take(f"{exchange}.unrouted")) == 1
