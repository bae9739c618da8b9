"""Which events reach which consumers."""

from __future__ import annotations

import pytest

from evworker.broker import Event
from evworker.workers import AnyEvent, Context, Plugin, Retry
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, PaymentProcessed, Seen, Stage, UserRegistered

TOPICS = ["orders", "orders.placed", "orders.eu.placed", "payments.eu.failed", "users"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("orders.placed", ["orders.placed"]),
        ("orders.*", ["orders.placed"]),
        ("orders.#", ["orders", "orders.placed", "orders.eu.placed"]),
        ("*.eu.*", ["orders.eu.placed", "payments.eu.failed"]),
        ("#.placed", ["orders.placed", "orders.eu.placed"]),
        ("*", ["orders", "users"]),
        ("#", TOPICS),
    ],
)
async def test_a_pattern_gets_what_it_matches(
    stage: Stage, pattern: str, expected: list[str]
) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, pattern)
    await stage.declare(plugin)
    for topic in TOPICS:
        await stage.send(b'{"n": 1}', topic=topic)
    worker = await stage.work(plugin)
    assert sorted(seen.topics) == sorted(expected)
    assert worker.counts.handled == len(expected)
    assert seen.events[0] == AnyEvent(seen.topics[0], None, {"n": 1})


async def test_every_consumer_that_wants_an_event_gets_it_once(stage: Stage) -> None:
    exact, broad, other = Seen(), Seen(), Seen()
    plugin = Plugin("shop")
    for name, handler, wanted in (
        ("exact", exact, OrderPlaced),
        ("broad", broad, "orders.#"),
        ("other", other, UserRegistered),
    ):
        events: tuple[type[Event] | str, ...] = (wanted,)
        plugin.consumer(*events, name=name, queue=stage.queue(name), retry=Retry())(handler)
    async with stage.working(plugin):
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: len(exact) == len(broad) == 1)
        await stage.publish(UserRegistered(user_id="7"))
        await eventually(lambda: len(other) == 1)
    assert exact.events == [OrderPlaced(order_id="42")]
    assert broad.events == [AnyEvent("orders.placed", 2, {"order_id": "42"})]
    assert other.events == [UserRegistered(user_id="7")]


async def test_a_union_gets_each_event_as_its_own_type(stage: Stage) -> None:
    seen = Seen()

    async def on_both(event: OrderPlaced | PaymentProcessed, ctx: Context) -> None:
        seen.note(event, ctx)

    plugin = stage.plugin(on_both, OrderPlaced, PaymentProcessed, concurrency=1)
    async with stage.working(plugin):
        await stage.publish(OrderPlaced(order_id="1"))
        await stage.publish(PaymentProcessed(order_id="2"))
        await eventually(lambda: len(seen) == 2)
    assert seen.events == [OrderPlaced(order_id="1"), PaymentProcessed(order_id="2")]


async def test_consumers_of_disjoint_topics_share_a_queue(stage: Stage) -> None:
    orders, payments = Seen(), Seen()
    plugin = Plugin("shop")
    shared = stage.queue("shared")
    plugin.consumer("orders.*", name="orders", queue=shared, retry=Retry())(orders)
    plugin.consumer(PaymentProcessed, name="payments", queue=shared, retry=Retry())(payments)
    async with stage.working(plugin):
        for number in range(10):
            await stage.publish(OrderPlaced(order_id=str(number)))
            await stage.publish(PaymentProcessed(order_id=str(number)))
        await eventually(lambda: len(orders) == len(payments) == 10)
    assert set(orders.topics) == {"orders.placed"}
    assert set(payments.topics) == {"payments.processed"}
    assert {ctx.consumer for ctx in orders.contexts} == {"orders"}
    assert {ctx.queue for ctx in payments.contexts} == {shared}


async def test_what_nobody_wants_is_kept_and_not_dropped(stage: Stage) -> None:
    async with stage.working(stage.plugin(Seen(), "orders.*")):
        await stage.publish(UserRegistered(user_id="7"))
        unrouted = f"{stage.exchange}.unrouted"

        async def kept() -> bool:
            return await stage.waiting_in(unrouted) == 1

        await eventually(kept)
    message = await stage.raw(unrouted)
    assert message.type == "users.registered"


async def test_a_consumer_binds_to_the_exchange_that_its_worker_was_told(stage: Stage) -> None:
    seen = Seen()
    async with stage.working(stage.plugin(seen, "orders.*")):
        envelope = await stage.publish(OrderPlaced(order_id="1"), key="customer 7")
        await eventually(lambda: len(seen) == 1)
    (ctx,) = seen.contexts
    assert ctx.envelope == envelope
    assert (ctx.attempt, ctx.redelivered, ctx.envelope.key) == (1, False, "customer 7")
