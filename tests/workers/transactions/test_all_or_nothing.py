"""A transactional attempt commits all that it did, with its inbox row, or leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy import insert, text

from evworker.workers import Context, DeadLetter, Discard, Next, Retry, RetryAfter
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, PaymentProcessed, Stage
from tests.workers.transactions.shop import Shop, charge, effects


async def test_what_is_handled_is_committed_with_its_inbox_row(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        published = [await stage.publish(OrderPlaced(order_id=str(number))) for number in range(20)]
        await eventually(lambda: worker.counts.settled == 20)
    assert (worker.counts.handled, worker.counts.duplicates) == (20, 0)
    assert await shop.effects() == sorted(str(number) for number in range(20))
    assert await shop.inbox() == sorted(("charge", envelope.id) for envelope in published)


async def fails(ctx: Context) -> None:
    raise OutOfLuckError


async def exits(ctx: Context) -> None:
    sys.exit(3)


async def is_cancelled(ctx: Context) -> None:
    raise asyncio.CancelledError


async def asks_for_later(ctx: Context) -> None:
    raise RetryAfter("1s")


async def gives_up(ctx: Context) -> None:
    raise DeadLetter("no")


async def discards(ctx: Context) -> None:
    raise Discard("a test")


async def takes_too_long(ctx: Context) -> None:
    await asyncio.Event().wait()


async def takes_too_long_in_the_database(ctx: Context) -> None:
    match ctx.session.get_bind().dialect.name:
        case "postgresql":
            await ctx.session.execute(text("SELECT pg_sleep(60)"))
        case "mysql" | "mariadb":
            await ctx.session.execute(text("SELECT SLEEP(60)"))
        case _:
            await asyncio.Event().wait()


ENDINGS = {
    ending.__name__: ending
    for ending in (
        fails,
        exits,
        is_cancelled,
        asks_for_later,
        gives_up,
        discards,
        takes_too_long,
        takes_too_long_in_the_database,
    )
}


async def test_a_failed_attempt_leaves_nothing_behind(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        await ctx.publish(PaymentProcessed(order_id=event.order_id))
        await ENDINGS[event.order_id](ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, timeout="1s")
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for name in ENDINGS:
            await stage.publish(OrderPlaced(order_id=name))
        await eventually(lambda: worker.counts.settled == len(ENDINGS))
    assert (worker.counts.handled, worker.counts.discarded) == (0, 1)
    assert await shop.effects() == []
    assert await shop.inbox() == []
    assert await shop.outbox() == []


async def test_the_next_attempt_begins_anew(stage: Stage, shop: Shop, database_url: str) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if ctx.attempt < 3:
            raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, retry=Retry(SOON, SOON))
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    assert (worker.counts.retried, worker.counts.handled) == (2, 1)
    assert await shop.effects() == ["42"]


async def test_middleware_is_inside_the_transaction(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def audited(event: object, ctx: Context, call_next: Next) -> None:
        await ctx.session.execute(insert(effects).values(order_id="before"))
        await call_next(event, ctx)
        if ctx.attempt == 1:
            raise OutOfLuckError

    plugin = stage.plugin(
        charge, OrderPlaced, transactional=True, middleware=[audited], retry=Retry(SOON)
    )
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    assert await shop.effects() == ["42", "before"]


async def test_a_stop_in_the_middle_of_a_handler_rolls_back_and_hands_back(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    started = asyncio.Event()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        started.set()
        await asyncio.Event().wait()

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(
        plugin, database=database_url, relay=False, shutdown_timeout_s=0.1
    ) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await asyncio.wait_for(started.wait(), 10)
    assert worker.counts.handed_back == 1
    assert await shop.effects() == []
    assert await shop.inbox() == []
    again = stage.plugin(charge, OrderPlaced, transactional=True)
    async with stage.working(again, database=database_url, relay=False) as worker:
        await eventually(lambda: worker.counts.handled == 1)
    assert await shop.effects() == ["42"]


async def test_after_its_attempt_a_session_is_of_no_use(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    late: list[str] = []
    left: list[Context] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        left.append(ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
        try:
            await charge(OrderPlaced(order_id="late"), left[0])
        except Exception as error:  # noqa: BLE001 - SQLAlchemy's
            late.append(str(error))
    assert "permanently closed" in late[0]
    assert await shop.effects() == []
