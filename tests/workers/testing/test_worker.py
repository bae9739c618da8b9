"""What the test worker shows of a real one: each event, each delivery and its end, settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from sqlalchemy import Column, MetaData, String, Table, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from evworker.broker import (
    ConfigurationError,
    Connection,
    Event,
    InvalidEventError,
    Outbox,
    UndecodableError,
    count_messages,
)
from evworker.workers import (
    Context,
    Discard,
    KillSwitch,
    Plugin,
    PluginStartError,
    Retry,
    RetryAfter,
)
from evworker.workers.consumer import Next
from evworker.workers.testing import NotSettledError, TestWorker

metadata = MetaData()
payments = Table("payments", metadata, Column("order_id", String(20)))


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str
    fails: int = 0


class PaymentProcessed(Event, topic="payments.processed"):
    order_id: str


class CustomerThanked(Event, topic="customers.thanked"):
    order_id: str


class NoAnswer(Exception):  # noqa: N818
    pass


async def charge(event: OrderPlaced, ctx: Context) -> None:
    if ctx.attempt <= event.fails:
        raise NoAnswer(f"to order {event.order_id}")
    await ctx.publish(PaymentProcessed(order_id=event.order_id), key=event.order_id)


async def thank(event: PaymentProcessed, ctx: Context) -> None:
    await ctx.publish(CustomerThanked(order_id=event.order_id))


def shop(**options: Any) -> Plugin:
    plugin = Plugin("shop")
    plugin.consumer(OrderPlaced, **{"retry": Retry("5m", "1h"), **options})(charge)
    plugin.consumer(PaymentProcessed)(thank)
    return plugin


async def paid(worker: TestWorker) -> int:
    async with worker.engine.connect() as connection:
        return await connection.scalar(select(func.count()).select_from(payments)) or 0


async def test_a_publish_returns_when_the_whole_cascade_is_settled(anywhere: str | None) -> None:
    order, payment = OrderPlaced(order_id="42"), PaymentProcessed(order_id="42")
    async with TestWorker(shop(), broker=anywhere) as worker:
        sent = await worker.publish(order, key="k")
        assert worker.consumed.events == [order, payment]
        assert worker.published.events == [order, payment, CustomerThanked(order_id="42")]
        assert worker.published.by(charge).of(PaymentProcessed) == [payment]
        assert worker.published.by("shop.thank").of(CustomerThanked) == worker.unrouted.of(
            CustomerThanked
        )
        assert worker.published[1].envelope.key == "42"
        assert {record.envelope.correlation_id for record in worker.published} == {sent.id}
        assert worker.consumed.by(thank).events == [payment]
        assert [*worker.retried, *worker.dead_letters, *worker.duplicates] == []


async def test_records_are_asked_for_by_consumers_that_there_are() -> None:
    class Till:
        async def ring(self, event: OrderPlaced, ctx: Context) -> None:
            await ctx.publish(PaymentProcessed(order_id=event.order_id))

    plugin, till = Plugin("p"), Till()
    plugin.consumer(OrderPlaced)(till.ring)
    async with TestWorker(plugin) as worker:
        await worker.publish(OrderPlaced(order_id="42"))
        assert len(worker.consumed.by(till.ring)) == 1
        assert len(worker.published.by(till.ring)) == 1
        for stranger in ("p.rign", charge):
            with pytest.raises(ConfigurationError, match=r"it has p\.ring"):
                worker.dead_letters.by(stranger)


async def test_waits_for_another_attempt_pass_at_once(anywhere: str | None) -> None:
    async with TestWorker(shop(), broker=anywhere) as worker:
        await worker.publish(OrderPlaced(order_id="42", fails=2))
        assert [record.delay_s for record in worker.retried] == [300.0, 3_600.0]
        assert [str(record.error) for record in worker.retried] == ["to order 42"] * 2
        assert [record.attempt for record in worker.consumed] == [3, 1]


async def test_the_time_that_passes_counts_for_the_policy_and_is_kept_in_order(
    anywhere: str | None,
) -> None:
    plugin, attempts = Plugin("p"), []

    @plugin.consumer(OrderPlaced, retry=Retry("30m", "30m", "30m", within="45m"))
    async def patient(event: OrderPlaced, ctx: Context) -> None:
        attempts.append(event.order_id)
        if event.order_id == "asks":
            raise RetryAfter("1h" if ctx.attempt == 1 else "1d")
        raise NoAnswer

    async with TestWorker(plugin, broker=anywhere) as worker:
        await worker.publish(OrderPlaced(order_id="late"), settle=False)
        await worker.settled(raises=False)
        assert attempts == ["late"] * 2
        await worker.publish(OrderPlaced(order_id="asks"), settle=False)
        await worker.settled(raises=False)
        assert attempts == ["late"] * 2 + ["asks"]
        assert [letter.attempt for letter in worker.dead_letters] == [2, 1]


async def test_what_waits_longer_comes_later() -> None:
    plugin, seen = Plugin("p"), []

    @plugin.consumer(OrderPlaced, retry=Retry("1s"))
    async def told(event: OrderPlaced, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise RetryAfter(event.order_id)
        seen.append(event.order_id)

    async with TestWorker(plugin) as worker:
        await worker.publish_many(OrderPlaced(order_id=wait) for wait in ("1d", "1s", "10m"))
        assert seen == ["1s", "10m", "1d"]


async def test_the_handlers_own_error_is_raised_once_where_the_test_waits() -> None:
    async with TestWorker(shop(retry=Retry())) as worker:
        with pytest.raises(NoAnswer, match="to order 42") as caught:
            await worker.publish(OrderPlaced(order_id="42", fails=9))
        assert [frame.name for frame in caught.traceback[-2:]] == ["settled", "charge"]
        [letter] = worker.dead_letters
        assert (letter.reason, letter.attempt, letter.error) == ("failed", 1, caught.value)
        assert caught.value.__notes__ == [repr(letter)]
        await worker.settled()


async def test_several_errors_are_raised_as_a_group() -> None:
    async with TestWorker(shop(retry=Retry())) as worker:
        orders = [OrderPlaced(order_id=id, fails=9) for id in "12"]
        with pytest.RaisesGroup(NoAnswer, NoAnswer):
            await worker.publish_many(orders)
        await worker.publish_many(orders, settle=False)
        await worker.settled(raises=False)
        assert len(worker.dead_letters) == 4


async def test_leaving_the_block_settles_what_is_not() -> None:
    with pytest.raises(NoAnswer):
        async with TestWorker(shop(retry=Retry())) as worker:
            await worker.publish(OrderPlaced(order_id="42", fails=9), settle=False)
    assert worker.dead_letters


async def test_a_test_that_has_failed_fails_with_its_own_error() -> None:
    async def failing() -> None:
        async with TestWorker(shop(retry=Retry())) as worker:
            await worker.publish(OrderPlaced(order_id="42", fails=9), settle=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()


async def test_what_never_gets_to_a_handler_is_raised_too(anywhere: str | None) -> None:
    class OtherOrder(Event, topic="orders.placed"):
        number: int

    async with TestWorker(shop(), broker=anywhere) as worker:
        with pytest.raises(InvalidEventError, match="order_id"):
            await worker.publish(OtherOrder(number=42))
        connection = await aio_pika.connect(worker.url)
        async with connection:
            exchange = await (await connection.channel()).get_exchange(worker.exchange)
            garbage = aio_pika.Message(b"{", content_type="application/cloudevents+json")
            await exchange.publish(garbage, "orders.placed")
        with pytest.raises(UndecodableError):
            await worker.settled()
        assert [letter.reason for letter in worker.dead_letters] == ["invalid", "undecodable"]
        assert [letter.event for letter in worker.dead_letters] == [None, None]
        invalid, unreadable = worker.story.splitlines()[1], worker.story.splitlines()[-2:]
        assert invalid.startswith("└─ shop.charge: dead-lettered, invalid: InvalidEventError: ")
        assert unreadable[0] == "shop.charge: what can't be read"
        assert unreadable[1].startswith("└─ dead-lettered, undecodable: UndecodableError: ")


async def test_a_wait_that_fails_tells_what_caused_what(anywhere: str | None) -> None:
    plugin, hanging = shop(), asyncio.Event()

    @plugin.consumer(CustomerThanked, timeout=None)
    async def hang(event: CustomerThanked, ctx: Context) -> None:
        hanging.set()
        await asyncio.Event().wait()

    async with TestWorker(plugin, broker=anywhere) as worker:
        await worker.publish(OrderPlaced(order_id="42", fails=1), settle=False)
        while not (hanging.is_set() and worker.consumed.by(thank)):
            with pytest.raises(NotSettledError):
                await worker.settled(timeout_s=0.01)
        with pytest.raises(NotSettledError) as caught:
            await worker.settled(timeout_s=0.01)
    assert str(caught.value).splitlines() == [
        "not settled within 0.01 s",
        "",
        "orders.placed  OrderPlaced(order_id='42', fails=1)",
        "└─ shop.charge: attempt 1 failed, again in 5m: NoAnswer: to order 42",
        "                handled at attempt 2",
        "   └─ payments.processed  PaymentProcessed(order_id='42')",
        "      └─ shop.thank: handled",
        "         └─ customers.thanked  CustomerThanked(order_id='42')",
        "            └─ shop.hang: attempt 1 is at work   ◄── not settled",
    ]


async def test_the_real_thing_runs() -> None:
    """Threads, middleware, lifespans and discards, as in `evworker run`."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[list[str]]:
        yield []

    async def note(event: Event, ctx: Context, call_next: Next) -> None:
        ctx.state.append("before")
        await call_next(event, ctx)

    plugin = Plugin("p", lifespan=lifespan, middleware=[note])

    @plugin.consumer(OrderPlaced)
    def in_a_thread(event: OrderPlaced, ctx: Context) -> None:
        ctx.publish_sync(PaymentProcessed(order_id=event.order_id))

    @plugin.consumer(PaymentProcessed)
    async def suspends(event: PaymentProcessed, ctx: Context) -> None:
        await asyncio.sleep(0.01)
        raise Discard("enough")

    async with TestWorker(plugin) as worker:
        await worker.publish(OrderPlaced(order_id="42"))
        assert worker.consumed.by(in_a_thread)
        assert [record.why for record in worker.discarded] == ["Discard: enough"]
        assert worker.state(plugin) == ["before", "before"]


async def test_a_kill_switch_opens_and_its_pause_is_short(anywhere: str | None) -> None:
    plugin, attempts = Plugin("p"), []

    switch = KillSwitch(ConnectionError, failures=2, pause="1h")

    @plugin.consumer(OrderPlaced, kill_switch=switch, retry=Retry("1s"))
    async def down_for_a_while(event: OrderPlaced, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) < 6:
            raise ConnectionRefusedError

    async with TestWorker(plugin, broker=anywhere) as worker:
        await worker.publish_many([OrderPlaced(order_id="1"), OrderPlaced(order_id="2")])
        assert len(worker.consumed) == 2
        assert not worker.dead_letters


async def test_a_dependency_that_stays_down_does_not_flood_the_story() -> None:
    plugin, attempts = Plugin("p"), []

    @plugin.consumer(OrderPlaced, kill_switch=KillSwitch(ConnectionError, failures=1))
    async def down(event: OrderPlaced, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionRefusedError

    async with TestWorker(plugin) as worker:
        await worker.publish(OrderPlaced(order_id="42"), settle=False)
        while len(attempts) < 3:
            with pytest.raises(NotSettledError) as caught:
                await worker.settled(timeout_s=0.1)
    story = str(caught.value)
    [line] = [line for line in story.splitlines() if "handed back" in line]
    assert "p.down: handed back: a kill switch is open, ConnectionRefusedError" in line
    assert " times)" in line
    assert story.endswith("   ◄── not settled")  # this line, or that of another attempt


async def test_a_cascade_without_end_is_told_as_far_as_it_helps(anywhere: str | None) -> None:
    plugin = Plugin("p")

    @plugin.consumer(OrderPlaced)
    async def and_another(event: OrderPlaced, ctx: Context) -> None:
        await ctx.publish(event)

    async with TestWorker(plugin, broker=anywhere) as worker:
        await worker.publish(OrderPlaced(order_id="42"), settle=False)
        while len(worker.published) <= 20:
            with pytest.raises(NotSettledError) as caught:
                await worker.settled(timeout_s=0.1)
    told = str(caught.value).splitlines()
    assert told[2 + 2 * 20].lstrip().startswith("└─ … and ")
    assert len(told) < 100


async def test_what_a_test_commits_to_the_outbox_is_relayed(anywhere: str | None) -> None:
    async with TestWorker(shop(), broker=anywhere, tables=metadata) as worker:
        async with AsyncSession(worker.engine) as session:
            outbox = Outbox(source="web")
            for order, delay in (("late", "1d"), ("soon", "1h"), ("now", None)):
                await outbox.add(session, OrderPlaced(order_id=order), delay=delay)
            await session.commit()
        await worker.settled()
        orders = worker.consumed.by(charge).of(OrderPlaced)
        assert [order.order_id for order in orders] == ["now", "soon", "late"]
        for number in range(20):  # the last delay is over just while it is looked for
            async with AsyncSession(worker.engine) as session:
                await outbox.add(session, OrderPlaced(order_id=str(number)), delay="1d")
                await session.commit()
            await worker.settled()
            assert len(worker.consumed.by(charge)) == 4 + number


async def test_a_transactional_consumer_has_its_database(
    anywhere: str | None, database_url: str
) -> None:
    plugin = Plugin("billing")

    @plugin.consumer(OrderPlaced, transactional=True, retry=Retry("5m"))
    async def pay(event: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(payments.insert().values(order_id=event.order_id))
        await ctx.publish(PaymentProcessed(order_id=event.order_id))
        if ctx.attempt <= event.fails:
            raise NoAnswer

    async with TestWorker(
        plugin, broker=anywhere, database=database_url, tables=metadata, timeout_s=30
    ) as worker:
        await worker.publish(OrderPlaced(order_id="42", fails=1))
        assert worker.published.of(PaymentProcessed) == [PaymentProcessed(order_id="42")]
        assert await paid(worker) == 1


async def test_a_worker_that_cannot_start_says_why(anywhere: str | None) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        if plugin.consumers:
            raise NoAnswer
        yield

    plugin = Plugin("p", lifespan=lifespan)
    plugin.consumer(OrderPlaced)(charge)
    with pytest.raises(PluginStartError, match="NoAnswer"):
        async with TestWorker(plugin, broker=anywhere):
            pass
    with pytest.raises(ConfigurationError, match="async with"):
        await TestWorker(plugin).publish(OrderPlaced(order_id="42"))


async def test_tests_side_by_side_do_not_meet(anywhere: str | None) -> None:
    async with (
        TestWorker(shop(), broker=anywhere) as one,
        TestWorker(shop(), broker=anywhere) as other,
    ):
        await one.publish(OrderPlaced(order_id="1"))
        await other.publish(OrderPlaced(order_id="2"))
        assert [event.order_id for event in one.consumed.of(OrderPlaced)] == ["1"]
        assert [event.order_id for event in other.consumed.of(OrderPlaced)] == ["2"]


async def test_nothing_is_left_on_a_real_broker(broker_url: str) -> None:
    async with TestWorker(shop(), broker=broker_url) as worker:
        with pytest.raises(NoAnswer):
            await worker.publish(OrderPlaced(order_id="42", fails=9))
        with pytest.raises(ConfigurationError, match="real broker"):
            _ = worker.broker
        names = ["shop.charge", "shop.charge.dlq", "unrouted", "evworker.test.tap"]
        queues = [f"{worker.exchange}.{name}" for name in names]
        async with Connection(broker_url, name="test") as connection:
            assert None not in [await count_messages(connection, queue) for queue in queues]
    async with Connection(broker_url, name="test") as connection:
        assert {await count_messages(connection, queue) for queue in queues} == {None}
