"""A database that is away, or goes away: what comes is held, and no message pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    SchemaError,
)
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.database.tables import inbox
from evworker.workers import Context, KillSwitch, Plugin, Retry, Worker
from tests.databases import own_database
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, Stage, running, until_ready
from tests.workers.transactions.shop import Shop, charge


@pytest.fixture(params=["postgresql", "mariadb"])
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with a wire to it."""
    with own_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
async def shop(server_url: str) -> AsyncIterator[Shop]:
    engine = open_engine(server_url)
    await make_tables(engine)
    shop = Shop(engine)
    await shop.make()
    yield shop
    await engine.dispose()


@pytest.fixture
async def wire(server_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(server_url)
    yield proxy
    await proxy.close()


async def test_a_database_that_is_not_there_yet_is_waited_for(
    stage: Stage, shop: Shop, wire: Proxy
) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    worker = stage.worker(plugin, database=wire.url, relay=False)
    async with running(worker) as task:
        await asyncio.wait([task], timeout=0.5)
        assert not worker.ready.is_set()
        await wire.open()
        await until_ready(worker)
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    assert await shop.effects() == ["42"]


async def test_a_stop_ends_the_waiting_for_a_database(stage: Stage, wire: Proxy) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    worker = stage.worker(plugin, database=wire.url, relay=False)
    async with running(worker) as task:
        await asyncio.wait([task], timeout=0.3)
    assert task.done()


async def test_what_comes_while_it_is_away_is_held_and_costs_no_attempt(
    stage: Stage, shop: Shop, wire: Proxy
) -> None:
    await wire.open()
    # Held, and not paused or retried: neither could bring these to their end.
    plugin = stage.plugin(charge, OrderPlaced, transactional=True, kill_switch=None)
    async with stage.working(plugin, database=wire.url, relay=False) as worker:
        wire.refuse()
        wire.cut()
        for number in range(5):
            await stage.publish(OrderPlaced(order_id=str(number)))

        async def all_are_taken() -> bool:
            return await stage.waiting_in(plugin.consumers[0].queue) == 0

        await eventually(all_are_taken)
        assert worker.counts.settled == 0
        await wire.open()
        await eventually(lambda: worker.counts.handled == 5, timeout_s=30)
    assert worker.counts.settled == 5
    assert await shop.effects() == ["0", "1", "2", "3", "4"]


async def test_a_stop_hands_back_what_is_held(stage: Stage, shop: Shop, wire: Proxy) -> None:
    await wire.open()
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    queue = plugin.consumers[0].queue
    async with stage.working(plugin, database=wire.url, relay=False) as worker:
        wire.refuse()
        wire.cut()
        await stage.publish(OrderPlaced(order_id="42"))

        async def is_taken() -> bool:
            return await stage.waiting_in(queue) == 0

        await eventually(is_taken)
    assert (worker.counts.handed_back, worker.counts.settled) == (1, 0)

    async def is_back() -> bool:
        return await stage.waiting_in(queue) == 1

    await eventually(is_back)


async def test_what_is_held_too_long_is_handed_back(
    stage: Stage, shop: Shop, wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the broker would take it back by itself."""
    monkeypatch.setattr("evworker.workers.inbox._LONGEST_HOLD_S", 0.2)
    await wire.open()
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    async with stage.working(plugin, database=wire.url, relay=False) as worker:
        wire.refuse()
        wire.cut()
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handed_back >= 1, timeout_s=30)
        # A slow machine may need longer than that to connect.
        monkeypatch.undo()
        await wire.open()
        await eventually(lambda: worker.counts.handled == 1, timeout_s=30)
    assert worker.counts.settled == 1
    assert await shop.effects() == ["42"]


@pytest.mark.parametrize("cut_before", ["a statement", "the commit"])
async def test_a_connection_lost_in_the_middle_is_a_failed_attempt(
    stage: Stage, shop: Shop, wire: Proxy, cut_before: str
) -> None:
    errors: list[BaseException] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if ctx.attempt == 1:
            wire.cut()
            if cut_before == "a statement":
                await charge(event, ctx)

    class Noticed(KillSwitch):
        def matches(self, error: BaseException) -> bool:
            errors.append(error)
            return super().matches(error)

    await wire.open()
    plugin = stage.plugin(
        handle,
        OrderPlaced,
        transactional=True,
        retry=Retry(SOON, SOON),
        kill_switch=Noticed(ConnectionError),
    )
    async with stage.working(plugin, database=wire.url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1, timeout_s=30)
    assert worker.counts.retried == 1
    assert await shop.effects() == ["42"]
    (error,) = errors
    assert isinstance(error, DatabaseUnreachableError)


async def test_a_commit_whose_answer_is_lost_is_applied_once(
    stage: Stage, shop: Shop, wire: Proxy
) -> None:
    """The database has committed and nobody knows: the next delivery finds the inbox row."""
    await wire.open()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        if ctx.attempt == 1:
            wire.loses_answers_to(b"COMMIT")

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, retry=Retry(SOON, SOON))
    async with stage.working(plugin, database=wire.url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.duplicates == 1, timeout_s=30)
    assert (worker.counts.handled, worker.counts.retried) == (0, 1)
    assert await shop.effects() == ["42"]


async def test_a_frozen_wire_holds_up_no_rollback_and_no_stop(
    stage: Stage, shop: Shop, wire: Proxy
) -> None:
    await wire.open()

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(event, ctx)
        wire.freeze()
        await charge(event, ctx)

    plugin = stage.plugin(handle, OrderPlaced, transactional=True, timeout="200ms")
    async with stage.working(plugin, database=wire.url, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 1}, timeout_s=30)
    assert await shop.effects() == []


async def test_a_lost_race_of_two_transactions_is_a_failed_attempt(
    stage: Stage, shop: Shop, server_url: str
) -> None:
    """A deadlock, which the database ends by refusing one of the two."""
    meeting = asyncio.Barrier(2)
    errors: list[str] = []

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        mine, other = ("a", "b") if event.order_id == "1" else ("b", "a")
        lock = "UPDATE unique_effects SET order_id = order_id WHERE order_id = :order"
        await ctx.session.execute(text(lock), {"order": mine})
        if ctx.attempt == 1:
            await meeting.wait()
        try:
            await ctx.session.execute(text(lock), {"order": other})
        except Exception as error:
            errors.append(str(error))
            raise
        await charge(event, ctx)

    async with shop.engine.begin() as connection:
        await connection.execute(text("INSERT INTO unique_effects VALUES ('a'), ('b')"))
    plugin = stage.plugin(handle, OrderPlaced, transactional=True, retry=Retry(SOON, SOON, SOON))
    async with stage.working(plugin, database=server_url, relay=False) as worker:
        for number in ("1", "2"):
            await stage.publish(OrderPlaced(order_id=number))
        await eventually(lambda: worker.counts.handled == 2, timeout_s=30)
    assert "deadlock" in errors[0].lower()
    assert worker.counts.retried == len(errors)
    assert await shop.effects() == ["1", "2"]


async def test_a_database_that_refuses_ends_the_start(stage: Stage, server_url: str) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    worker = stage.worker(plugin, database=f"{server_url}_that_is_not_there", relay=False)
    with pytest.raises(DatabaseRefusedError):
        await asyncio.wait_for(worker.run(), 30)


async def test_missing_tables_end_the_start_and_say_what_to_do(
    stage: Stage, shop: Shop, server_url: str
) -> None:
    async with shop.engine.begin() as connection:
        await connection.run_sync(inbox.drop)
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    with pytest.raises(SchemaError, match="evworker outbox init"):
        await asyncio.wait_for(stage.worker(plugin, database=server_url, relay=False).run(), 30)


def test_a_transactional_consumer_needs_a_database() -> None:
    plugin = Plugin("billing")
    plugin.consumer(OrderPlaced, transactional=True)(charge)
    plain = Plugin("plain")
    plain.consumer(OrderPlaced)(charge)
    with pytest.raises(ConfigurationError, match=r"billing\.charge.*database"):
        Worker([plugin], "amqp://localhost/")
    with pytest.raises(ConfigurationError, match="relay=True needs a database"):
        Worker([plain], "amqp://localhost/", relay=True)


async def test_an_engine_of_the_users_is_left_open_and_unguarded(stage: Stage, shop: Shop) -> None:
    plugin = stage.plugin(charge, OrderPlaced, transactional=True)
    engine: AsyncEngine = shop.engine
    async with stage.working(plugin, database=engine, relay=False) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.handled == 1)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO unique_effects VALUES ('a')"))
    assert await shop.effects() == ["42"]
