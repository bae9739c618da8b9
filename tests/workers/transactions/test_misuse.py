"""Handlers that end or break the transaction themselves are never taken for handled."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event as database_event
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from evworker.broker import ConsumerError, TransactionError
from evworker.broker.database.tables import inbox, utc_now
from evworker.workers import Context, Plugin
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.transactions.shop import Shop, charge, effects, unique_effects


async def commits(ctx: Context) -> None:
    await ctx.session.commit()


async def commits_underneath(ctx: Context) -> None:
    await ctx.session.run_sync(Session.commit)


async def commits_on_the_connection(ctx: Context) -> None:
    await (await ctx.session.connection()).commit()


async def commits_all_the_same_and_closes(ctx: Context) -> None:
    with suppress(TransactionError):
        await ctx.session.commit()
    await ctx.session.close()


async def rolls_back(ctx: Context) -> None:
    await ctx.session.rollback()


async def rolls_back_and_goes_on(ctx: Context) -> None:
    await ctx.session.rollback()
    await ctx.session.execute(insert(effects).values(order_id="afterwards"))


async def rolls_back_on_the_connection(ctx: Context) -> None:
    await (await ctx.session.connection()).rollback()


async def rolls_back_by_hand(ctx: Context) -> None:
    await ctx.session.execute(text("ROLLBACK"))


async def closes(ctx: Context) -> None:
    await ctx.session.close()


async def begins_another(ctx: Context) -> None:
    async with ctx.session.begin():
        pass


ALL = [
    commits,
    commits_underneath,
    commits_on_the_connection,
    commits_all_the_same_and_closes,
    rolls_back,
    rolls_back_and_goes_on,
    rolls_back_on_the_connection,
    rolls_back_by_hand,
    closes,
    begins_another,
]
IMPATIENCE = {
    "postgresql": "SET LOCAL lock_timeout = '500ms'",
    "mysql": "SET innodb_lock_wait_timeout = 1",
    "sqlite": "PRAGMA busy_timeout = 500",
}
"""Has a statement fail that would wait for the lock of another transaction."""

MISUSES = {misuse.__name__: misuse for misuse in ALL}


async def test_who_ends_the_transaction_has_failed(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        await MISUSES[event.order_id](ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        for name in MISUSES:
            await stage.publish(OrderPlaced(order_id=name), id=name)
        await eventually(lambda: worker.counts.settled == len(MISUSES))
    assert worker.counts.dead_lettered == {"failed": len(MISUSES)}
    assert await shop.effects() == []
    assert await shop.inbox() == []
    letters = await stage.letters(plugin.consumers[0].queue)
    told = {letter.id: letter.failure.error_message or "" for letter in letters}
    for name in ("commits", "commits_underneath", "commits_on_the_connection"):
        assert "the handler can't commit" in told[name]
    for name in ("rolls_back", "rolls_back_and_goes_on", "rolls_back_by_hand"):
        assert "begin_nested()" in told[name] or "transaction" in told[name]


@pytest.mark.parametrize("misuse", MISUSES)
async def test_nothing_of_it_is_committed_with_the_next_event(
    stage: Stage, shop: Shop, database_url: str, misuse: str
) -> None:
    """Which has the same connection, out of the pool."""

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if event.order_id == misuse:
            await MISUSES[misuse](ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, concurrency=1)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id=misuse), id=misuse)
        await stage.publish(OrderPlaced(order_id="next"), id="next")
        await eventually(lambda: worker.counts.settled == 2)
    assert worker.counts.dead_lettered == {"failed": 1}
    assert await shop.effects() == ["next"]
    assert [id for _, id in await shop.inbox()] == ["next"]


@pytest.mark.parametrize("misuse", MISUSES)
async def test_no_lock_outlives_it(
    stage: Stage, shop: Shop, database_url: str, misuse: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        await MISUSES[misuse](ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id=misuse), id=misuse)
        await eventually(lambda: worker.counts.settled == 1)
        row = {"consumer": plugin.consumers[0].name, "event_id": misuse, "handled_at": utc_now()}
        async with shop.engine.begin() as another:
            await another.execute(text(IMPATIENCE[shop.engine.dialect.name]))
            await another.execute(insert(inbox).values(row))
    assert [id for _, id in await shop.inbox()] == [misuse]


async def test_who_swallows_the_refusal_of_a_commit_is_all_or_nothing(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        try:
            await ctx.session.commit()
        except TransactionError:
            return

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.settled == 1)
    assert worker.counts.settled == 1
    assert len(await shop.effects()) == len(await shop.inbox()) == worker.counts.handled


async def test_who_swallows_an_integrity_error_is_not_handled_without_its_inbox_row(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        for _ in range(2):
            try:
                await ctx.session.execute(insert(unique_effects).values(order_id="42"))
            except IntegrityError:
                ctx.log.info("as if nothing had happened")

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.settled == 1)
    # PostgreSQL has given the transaction up; to the others it was one statement that failed.
    handled = 0 if shop.engine.dialect.name == "postgresql" else 1
    assert worker.counts.handled == handled
    assert len(await shop.effects()) == len(await shop.inbox()) == handled
    assert await shop.count(unique_effects) == handled


async def test_a_part_may_be_rolled_back(stage: Stage, shop: Shop, database_url: str) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        for _ in range(2):
            try:
                async with ctx.session.begin_nested():
                    await ctx.session.execute(insert(unique_effects).values(order_id="42"))
            except IntegrityError:
                await ctx.session.execute(insert(effects).values(order_id="twice"))

    plugin = stage.plugin(handle, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=database_url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.settled == 1)
    assert worker.counts.handled == 1
    assert await shop.effects() == ["42", "twice"]
    assert await shop.count(unique_effects) == 1


async def test_what_the_commit_itself_refuses_is_a_failed_attempt(stage: Stage, shop: Shop) -> None:
    """A deferred constraint; on MariaDB, which has none, the statement is refused at once.

    SQLite does not end a transaction whose commit it refuses.
    """

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if event.order_id != "next":
            await ctx.session.execute(text("INSERT INTO payments VALUES (1, 'no such order')"))

    if shop.is_sqlite:
        await shop.engine.dispose()
        database_event.listen(shop.engine.sync_engine, "connect", with_foreign_keys)
    deferrable = "" if shop.engine.dialect.name == "mysql" else "DEFERRABLE INITIALLY DEFERRED"
    async with shop.engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE TABLE payments (id INTEGER PRIMARY KEY, order_id VARCHAR(64), "
                f"FOREIGN KEY (order_id) REFERENCES unique_effects (order_id) {deferrable})"
            )
        )
    plugin = stage.plugin(handle, OrderPlaced, transactional=True, concurrency=1)
    async with stage.working(plugin, database=shop.engine, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="42")
        await stage.publish(OrderPlaced(order_id="next"), id="next")
        await eventually(lambda: worker.counts.settled == 2)
    assert worker.counts.handled == 1
    assert await shop.effects() == ["next"]
    assert [id for _, id in await shop.inbox()] == ["next"]


def with_foreign_keys(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys=ON")


async def test_other_consumers_have_no_session(stage: Stage, shop: Shop, database_url: str) -> None:
    async def reads(ctx: Context) -> None:
        await ctx.session.execute(select(effects))

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await reads(ctx)

    plugin = stage.plugin(handle, OrderPlaced)
    async with stage.working(plugin, database=database_url, relay=False):
        await stage.publish(OrderPlaced(order_id="42"))
        letter = await stage.letter(plugin.consumers[0].queue)
    assert "transactional=True" in (letter.failure.error_message or "")


def test_a_plain_function_can_not_be_transactional() -> None:
    plugin = Plugin("billing")
    with pytest.raises(ConsumerError, match="async def"):

        @plugin.consumer(OrderPlaced, transactional=True)
        def handle(event: OrderPlaced, ctx: Context) -> None: ...


@pytest.mark.parametrize("name", ["n" * 256, "billing.charge "])
def test_a_name_that_the_inbox_can_not_keep_is_refused(name: str) -> None:
    plugin = Plugin("billing")
    with pytest.raises(ConsumerError, match="the inbox keeps names"):
        plugin.consumer(OrderPlaced, name=name, queue="charge", transactional=True)(charge)
