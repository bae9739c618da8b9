"""What goes wrong on demand: twice, crashed, in another order; and whether that matters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import ConfigurationError, Event
from evworker.broker.embedded import Fate
from evworker.workers import Context, Plugin, Retry
from evworker.workers.testing import TestWorker, assert_idempotent

metadata = MetaData()
payments = Table(
    "payments", metadata, Column("id", Integer, primary_key=True), Column("order_id", String(20))
)


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str


class PaymentProcessed(Event, topic="payments.processed"):
    order_id: str


careful = Plugin("careful")


@careful.consumer(OrderPlaced, transactional=True)
async def pay(event: OrderPlaced, ctx: Context) -> None:
    await ctx.session.execute(payments.insert().values(order_id=event.order_id))
    await ctx.publish(PaymentProcessed(order_id=event.order_id))


class Careless:
    """A plugin whose handler writes in a transaction of its own, and notes how it was called."""

    def __init__(self) -> None:
        self.engine: AsyncEngine
        self.calls: list[tuple[str, bool]] = []
        self.plugin = Plugin("careless")
        self.plugin.consumer(OrderPlaced, concurrency=1)(self.pay_again)

    async def pay_again(self, event: OrderPlaced, ctx: Context) -> None:
        self.calls.append((event.order_id, ctx.redelivered))
        async with self.engine.begin() as connection:
            await connection.execute(payments.insert().values(order_id=event.order_id))
        await ctx.publish(PaymentProcessed(order_id=event.order_id))

    async def tables(self, engine: AsyncEngine) -> None:
        self.engine = engine
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)


async def paid(worker: TestWorker) -> list[str]:
    async with worker.engine.connect() as connection:
        return list(await connection.scalars(select(payments.c.order_id)))


STEPS: list[tuple[Callable[[TestWorker], None], list[str], int]] = [
    (TestWorker.deliver_twice, ["handled", "duplicate"], 2),
    (TestWorker.crash_before_ack, ["crashed", "handled"], 2),
    (TestWorker.crash_after_commit, ["crashed", "duplicate"], 2),
]


@pytest.mark.parametrize(("step", "ends", "calls"), STEPS)
async def test_a_transactional_consumer_applies_it_once_and_another_one_does_not(
    step: Callable[[TestWorker], None], ends: list[str], calls: int, anywhere: str | None
) -> None:
    async with TestWorker(careful, broker=anywhere, tables=metadata) as worker:
        step(worker)
        await worker.publish(OrderPlaced(order_id="42"))
        assert [record.end for record in worker.deliveries] == ends
        assert await paid(worker) == ["42"]
        assert worker.published.of(PaymentProcessed) == [PaymentProcessed(order_id="42")]
    careless = Careless()
    async with TestWorker(careless.plugin, broker=anywhere, tables=careless.tables) as worker:
        step(worker)
        await worker.publish(OrderPlaced(order_id="42"))
        assert len(careless.calls) == len(await paid(worker)) == calls
        crashed = step is not TestWorker.deliver_twice
        assert careless.calls == [("42", False), ("42", crashed)]
        assert len(worker.published.of(OrderPlaced)) == 1


async def test_events_come_in_another_order(anywhere: str | None) -> None:
    careless = Careless()
    async with TestWorker(careless.plugin, broker=anywhere, tables=careless.tables) as worker:
        worker.reorder()
        with pytest.raises(ConfigurationError, match="publish_many"):
            await worker.publish(OrderPlaced(order_id="alone"))
        orders = [OrderPlaced(order_id=id) for id in "123"]
        sent = await worker.publish_many(orders)
        assert [envelope.decode(OrderPlaced) for envelope in sent] == orders
        assert worker.consumed.events == orders[::-1]
        await worker.publish_many(orders)
        assert worker.consumed.events == [*orders[::-1], *orders]


@pytest.mark.parametrize(
    "step",
    [
        TestWorker.deliver_twice,
        TestWorker.crash_before_ack,
        TestWorker.crash_after_commit,
        TestWorker.reorder,
    ],
)
async def test_what_was_to_go_wrong_and_did_not_is_told(step: Callable[[TestWorker], None]) -> None:
    with pytest.raises(ConfigurationError, match=rf"{step.__name__}\(\) .* has not happened"):
        async with TestWorker(careful, tables=metadata) as worker:
            step(worker)


async def test_an_embedded_broker_has_more_faults() -> None:
    async with TestWorker(careful, tables=metadata) as worker:
        faults = worker.broker.faults
        faults.at_publish(Fate.UNCONFIRMED, routing_key="payments.processed")
        await worker.publish(OrderPlaced(order_id="42"))
        assert await paid(worker) == ["42"]
        assert {event.order_id for event in worker.published.of(PaymentProcessed)} == {"42"}


async def test_a_broker_that_cuts_all_connections_is_worked_on_with() -> None:
    plugin, seen = Plugin("p"), list[bool]()

    @plugin.consumer(OrderPlaced)
    async def cut_off(event: OrderPlaced, ctx: Context) -> None:
        seen.append(ctx.redelivered)
        if not ctx.redelivered:
            worker.broker.faults.drop_connections()

    async with TestWorker(plugin) as worker:
        await worker.publish(OrderPlaced(order_id="42"))
        assert seen == [False, True]
        assert len(worker.published) == 1


async def test_what_is_idempotent_passes(anywhere: str | None) -> None:
    await assert_idempotent(
        pay, OrderPlaced(order_id="1"), OrderPlaced(order_id="2"),
        tables=metadata, ignore=["payments.id"], broker=anywhere,
    )  # fmt: skip


async def test_what_is_not_is_shown_row_by_row() -> None:
    careless = Careless()
    with pytest.raises(AssertionError) as caught:
        await assert_idempotent(careless.plugin, OrderPlaced(order_id="42"), tables=careless.tables)
    difference = [
        "  table payments:",
        "    + id=2, order_id='42'",
        "  published events:",
        "    + payments.processed PaymentProcessed(order_id='42')",
    ]
    assert str(caught.value).splitlines() == [
        "careless.pay_again is not idempotent for OrderPlaced(order_id='42')",
        "",
        "delivered twice at once:",
        *difference,
        "delivered again when all was settled:",
        *difference,
        "the worker crashed before the commit and the ack:",
        *difference,
        "the worker crashed after the commit, before the ack:",
        *difference,
    ]


class PaymentRefunded(Event, topic="payments.refunded"):
    order_id: str
    refund_id: str


async def test_a_plugin_is_tried_with_a_crash_at_each_of_its_consumers() -> None:
    careless = Careless()
    shop = careless.plugin = Plugin("shop")
    shop.consumer(OrderPlaced, transactional=True)(pay)

    @shop.consumer(PaymentProcessed)
    async def book(event: PaymentProcessed, ctx: Context) -> None:
        async with careless.engine.begin() as connection:
            await connection.execute(payments.insert().values(order_id="booked"))

    with pytest.raises(AssertionError) as caught:
        await assert_idempotent(shop, OrderPlaced(order_id="42"), tables=careless.tables)
    told = [line for line in str(caught.value).splitlines() if line.endswith(":")]
    assert [line for line in told if not line.startswith(" ")] == [
        "the worker crashed before the commit and the ack of shop.book:",
        "the worker crashed after the commit, before the ack of shop.book:",
    ]


async def test_what_differs_by_nature_in_an_event_is_left_out() -> None:
    plugin, numbers = Plugin("p"), count()

    @plugin.consumer(OrderPlaced, transactional=True)
    async def refund(event: OrderPlaced, ctx: Context) -> None:
        await ctx.publish(PaymentRefunded(order_id=event.order_id, refund_id=str(next(numbers))))

    order = OrderPlaced(order_id="42")
    for ignore in ("refund_id", "payments.refunded.refund_id"):
        await assert_idempotent(plugin, order, ignore=[ignore])
    with pytest.raises(AssertionError, match=r"PaymentRefunded\(refund_id='\d+'\)"):
        await assert_idempotent(plugin, order, ignore=["order_id"])


async def test_an_error_that_only_misfortune_brings_is_raised_and_says_when() -> None:
    plugin, seen = Plugin("p"), set[str]()

    @plugin.consumer(OrderPlaced, retry=Retry())
    async def refuse(event: OrderPlaced, ctx: Context) -> None:
        if ctx.envelope.id in seen and ctx.redelivered:
            raise KeyError(event.order_id)
        seen.add(ctx.envelope.id)

    with pytest.raises(KeyError) as caught:
        await assert_idempotent(plugin, OrderPlaced(order_id="42"))
    assert "raised when the worker crashed before the commit" in caught.value.__notes__[-1]


async def test_the_database_may_be_any_that_is_made_afresh(tmp_path: Path) -> None:
    used: list[str] = []

    @asynccontextmanager
    async def fresh() -> AsyncIterator[str]:
        used.append(f"sqlite:///{tmp_path}/{len(used)}.db")
        yield used[-1]

    await assert_idempotent(pay, OrderPlaced(order_id="42"), database=fresh, tables=metadata)
    assert len(used) == 5


async def test_a_handler_of_which_no_plugin_is_known_is_refused() -> None:
    numbers = count()

    async def stray(event: OrderPlaced, ctx: Context) -> None:
        next(numbers)

    with pytest.raises(ConfigurationError, match="give the plugin instead"):
        await assert_idempotent(stray, OrderPlaced(order_id="42"))
    with pytest.raises(ConfigurationError, match="nothing is tried"):
        await assert_idempotent(careful, PaymentProcessed(order_id="42"), tables=metadata)
