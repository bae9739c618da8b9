"""What a transactional handler publishes is in the outbox if, and only if, it committed."""

from __future__ import annotations

import asyncio

from evworker.broker import Envelope
from evworker.workers import AnyEvent, Context, Plugin, Retry
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, PaymentProcessed, Seen, Stage
from tests.workers.transactions.shop import Shop, charge


async def test_it_is_written_with_the_cascade_it_belongs_to(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    returned: list[Envelope] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        payment = PaymentProcessed(order_id=event.order_id)
        returned.append(await ctx.publish(payment, key="customer-7", priority=3, id="p-1"))
        # At once, as handlers do that wait for no answer in between.
        await asyncio.gather(*(ctx.publish(payment) for _ in range(3)))
        if ctx.attempt == 1:
            raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, retry=Retry(SOON))
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        cause = await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    bodies = await shop.outbox_bodies()
    written = [Envelope.parse(body) for body in bodies]
    assert [envelope.topic for envelope in written] == ["payments.processed"] * 4
    assert written[0] == returned[-1]
    assert (written[0].id, written[0].key, written[0].source) == ("p-1", "customer-7", "billing")
    assert {envelope.causation_id for envelope in written} == {cause.id}
    assert {envelope.correlation_id for envelope in written} == {cause.correlation_id}


async def test_the_workers_relay_publishes_it_and_a_burst_waits_for_that(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        await ctx.publish(PaymentProcessed(order_id=event.order_id), key=event.order_id)

    seen = Seen()

    async def look(event: PaymentProcessed, ctx: Context) -> None:
        seen.note(event, ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    plugin.consumer(PaymentProcessed, queue=stage.queue("look"), retry=Retry())(look)
    await stage.declare(plugin)
    causes = [await stage.publish(OrderPlaced(order_id=str(number))) for number in range(10)]
    worker = await stage.work(plugin, database=database_url)
    assert worker.counts.handled == 20
    assert sorted(event.order_id for event in seen.events) == [str(n) for n in range(10)]
    assert {ctx.envelope.causation_id for ctx in seen.contexts} == {c.id for c in causes}
    assert await shop.outbox() == []


async def test_the_idempotency_key_stays_the_same_over_retries(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    keys: list[str] = []

    async def handle(event: AnyEvent, ctx: Context) -> None:
        keys.append(ctx.idempotency_key)
        if ctx.attempt < 3:
            raise OutOfLuckError

    plain, transactional = Plugin("plain"), Plugin("transactional")
    for plugin in (plain, transactional):
        plugin.consumer(
            "orders.*",
            queue=stage.queue(plugin.name),
            retry=Retry(SOON, SOON),
            transactional=plugin is transactional,
        )(handle)
    async with stage.working(plain, transactional, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.handled == 2)
    assert sorted(keys) == ["plain.handle:e-1"] * 3 + ["transactional.handle:e-1"] * 3
