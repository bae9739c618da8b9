"""The second half: with a database nothing is applied twice, and nothing told that did not happen.

Returned goods and their events are committed together; a worker relays the outbox; one event comes
twice, one attempt fails, and each refund is paid once.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from decimal import Decimal
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from evworker.broker import Envelope, Publisher, apply_topology
from evworker.broker.outbox.operating import outbox_status
from evworker.cli import database, embedded
from evworker.cli.demo.returns import (
    Base,
    GoodsReturned,
    NeverPaidError,
    Refund,
    Return,
    desk,
    take_back,
)
from evworker.cli.demo.stage import Account, Stage
from evworker.cli.failures import WrongError
from evworker.workers import Worker

if TYPE_CHECKING:
    from evworker.workers import Plugin

# Of the first the event comes twice; the last one was never paid.
GOODS = (("1001", "19.90"), ("1002", "42.00"), ("1003", "1999.00"))


async def play(stage: Stage) -> None:
    """Raises WrongError if the sums differ."""
    account = Account(stage.narration)
    plugins = desk(stage.prefix, middleware=[account.watch])
    plan = stage.plan(plugins)
    async with AsyncExitStack() as until_the_end:
        url = until_the_end.enter_context(embedded.own_database())
        engine = await until_the_end.enter_async_context(database.opened(url))
        until_the_end.push_async_callback(stage.clear, plan)
        await apply_topology(stage.connection, plan)
        await embedded.make_tables(url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        _introduce(stage, plugins)
        first = await _take_back(stage, engine)
        await _run_worker(stage, account, plugins, url, first)
        await _sum_up(stage, engine, account)


def _introduce(stage: Stage, plugins: tuple[Plugin, ...]) -> None:
    stage.narration.step(
        "So far a broker was enough. With a database, nothing is applied twice either."
    )
    stage.narration.code(take_back, plugins[0].consumers[0].handler)
    stage.narration.say("It is SQLite here, in a temporary folder. PostgreSQL, MariaDB and MySQL")
    stage.narration.say("do as well. Goods come back, and whoever paid for them is paid back.")


async def _take_back(stage: Stage, engine: AsyncEngine) -> Envelope:
    """Returns the envelope of the first event."""
    narration = stage.narration
    narration.step("Goods come back: a row of the shop's and an event in the outbox, or neither.")
    envelopes = []
    for order, total in GOODS:
        event = GoodsReturned(order=order, total=Decimal(total))
        try:
            async with AsyncSession(engine) as session, session.begin():
                envelopes.append(await take_back(session, event))
        except NeverPaidError as error:
            narration.say(f"order {order} {total:>8}   rolled back, {error}: no row, no event")
        else:
            narration.say(f"order {order} {total:>8}   committed: a row and an event")
    waiting = (await outbox_status(engine)).ready
    narration.say(f"{waiting} events wait in the outbox, and the broker knows nothing of them.")
    return envelopes[0]


async def _run_worker(
    stage: Stage, account: Account, plugins: tuple[Plugin, ...], database_url: str, first: Envelope
) -> None:
    stage.narration.step("The worker relays the outbox. The event of order 1001 comes twice.")
    stage.narration.say("That is what a relay does that dies before it has removed the row.")
    async with Publisher(stage.connection, exchange=stage.prefix) as publisher:
        await publisher.publish_envelope(first)
    worker = Worker(
        plugins, stage.broker_url, exchange=stage.prefix, burst=True, database=database_url
    )
    account.start()
    await worker.run()
    if worker.counts.duplicates != 1:
        raise WrongError(f"{worker.counts.duplicates} duplicates instead of 1; please report this")
    stage.narration.say("The second event of order 1001 was found in the inbox, and did nothing.")
    stage.narration.say("The failed attempt for order 1002 was rolled back, its event included.")


async def _sum_up(stage: Stage, engine: AsyncEngine, account: Account) -> None:
    stage.narration.step("The sums: what was committed took effect once, what was not took none.")
    rows: list[tuple[str | int, ...]] = []
    async with AsyncSession(engine) as session:
        for order, _ in GOODS:
            returned, refunded = [
                await session.scalar(
                    select(func.count()).select_from(table).where(table.order == order)
                )
                or 0
                for table in (Return, Refund)
            ]
            rows.append((f"order {order}", returned, refunded))
    returned, refunded = (sum(int(row[column]) for row in rows) for column in (1, 2))
    rows.append(("all", returned, refunded))
    stage.narration.table(("", "rows of returns", "rows of refunds"), rows)
    letters = account.handled["letters"]
    left = (await outbox_status(engine)).ready
    stage.narration.say(f"{letters} letters were written, {left} events are left in the outbox.")
    if any(row[1] != row[2] for row in rows) or (refunded, letters, left) != (2, 2, 0):
        raise WrongError("the sums differ; please report this")
