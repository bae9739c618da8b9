"""The database or the broker goes away in the middle, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from evworker.broker import BrokerUnreachableError, DatabaseUnreachableError
from evworker.broker.database.tables import outbox
from evworker.broker.outbox import patience
from evworker.broker.outbox.relay import Relay
from tests.broker.conftest import Bind, Take
from tests.broker.outbox.conftest import Arrivals, StartRelay, way_to
from tests.broker.outbox.written import is_empty, states, write
from tests.proxy import Proxy
from tests.waiting import eventually


async def attempts(engine: AsyncEngine) -> set[int]:
    async with engine.connect() as connection:
        return set(await connection.scalars(select(outbox.c.attempts)))


async def test_a_database_that_goes_away_is_waited_for(
    server: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    async with way_to(server) as (proxy, url):
        relay = await start_relay(url)
        await write(server, "a", order_id="1")
        await eventually(lambda: relay.counts.sent == 1)
        proxy.refuse()
        proxy.cut()
        await write(server, "a", "a", order_id="2")
        await eventually(lambda: relay._patience.database_is_away)  # noqa: SLF001 - it says so in the log only
        assert await arrivals.look() == ["1"]
        await proxy.open()
        await eventually(lambda: relay.counts.sent == 3, timeout_s=20)
        assert await arrivals.look() == ["1", "2", "2"]
        await write(server, None, order_id="3")
        await eventually(lambda: arrivals.are("1", "2", "3"))
        relay.stop()


async def test_a_connection_that_listens_is_replaced_when_it_is_lost(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    async with way_to(postgres) as (proxy, url):
        relay = await start_relay(url)
        await eventually(lambda: relay._wakeup.is_listening)  # noqa: SLF001
        proxy.cut()
        await eventually(lambda: not relay._wakeup.is_listening)  # noqa: SLF001
        await write(postgres, None, order_id="1")
        await eventually(lambda: arrivals.are("1"))
        await eventually(lambda: relay._wakeup.is_listening, timeout_s=20)  # noqa: SLF001
        relay.stop()


async def test_a_broker_that_goes_away_costs_no_row_an_attempt(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take, proxy: Proxy
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    relay = await start_relay(
        postgres, broker=proxy.address, dead_after_attempts=1, dead_after="1ms"
    )
    relay._publisher.timeout_s = 0.5  # noqa: SLF001 - else each look at the broker takes ten
    await write(postgres, "a", order_id="1")
    await eventually(lambda: relay.counts.sent == 1)
    proxy.refuse()
    proxy.cut()
    await write(postgres, "a", "a", None, order_id="2")
    await eventually(lambda: relay._patience.broker_is_away)  # noqa: SLF001
    await eventually(lambda: all_are_ready(postgres))
    assert await attempts(postgres) == {0}
    await proxy.open()
    await eventually(lambda: relay.counts.sent == 4, timeout_s=30)
    assert set(await arrivals.look()) == {"1", "2"}
    assert (relay.counts.refused, relay.counts.dead) == (0, 0)


async def all_are_ready(engine: AsyncEngine) -> bool:
    return set((await states(engine)).values()) == {"ready"}


async def test_a_broker_that_answers_nothing_costs_no_row_an_attempt(
    postgres: AsyncEngine,
    start_relay: StartRelay,
    bind: Bind,
    take: Take,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    monkeypatch.setattr(patience, "_PROBE_S", 0.2)
    relay = await start_relay(postgres, broker=proxy.address)
    relay._publisher.timeout_s = 0.3  # noqa: SLF001
    proxy.freeze()
    await write(postgres, "a", "a", order_id="1")
    await eventually(lambda: relay._patience.broker_is_away)  # noqa: SLF001
    await eventually(lambda: all_are_ready(postgres))
    assert await attempts(postgres) == {0}
    proxy.thaw()
    await eventually(lambda: is_empty(postgres), timeout_s=20)
    assert await arrivals.are("1")
    assert relay.counts.dead == 0


async def test_a_relay_can_be_stopped_while_both_are_away(
    postgres: AsyncEngine, proxy: Proxy, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "STOP_S", 0.3)
    async with way_to(postgres) as (database, url):
        relay = Relay(url, proxy.address, exchange=exchange)
        running = asyncio.create_task(relay.run())
        await relay.ready.wait()
        proxy.freeze()
        await write(postgres, None)
        await eventually(lambda: is_in_any(postgres, "claimed"))
        database.refuse()
        database.cut()
        proxy.refuse()
        proxy.cut()
        relay.stop()
        async with asyncio.timeout(20):
            await running
    assert set((await states(postgres)).values()) == {"claimed"}  # until its lease is over


async def is_in_any(engine: AsyncEngine, state: str) -> bool:
    return state in (await states(engine)).values()


async def test_it_waits_for_a_database_that_is_not_there_yet(
    postgres: AsyncEngine, broker_url: str, exchange: str
) -> None:
    async with way_to(postgres) as (proxy, url):
        proxy.refuse()
        relay = Relay(url, broker_url, exchange=exchange)
        with pytest.raises(DatabaseUnreachableError):
            await relay.open()
        await starts_once(proxy.open, relay)


async def test_it_waits_for_a_broker_that_is_not_there_yet(
    postgres: AsyncEngine, proxy: Proxy, exchange: str
) -> None:
    proxy.refuse()
    relay = Relay(postgres, proxy.address, exchange=exchange)
    with pytest.raises(BrokerUnreachableError):
        await relay.open()
    await starts_once(proxy.open, relay)


async def starts_once(there: Callable[[], Awaitable[None]], relay: Relay) -> None:
    with capture_logs() as logs:
        running = asyncio.create_task(relay.run())
        await eventually(lambda: [line for line in logs if "can't begin" in line["event"]])
        assert not relay.ready.is_set()
        await there()
        await asyncio.wait_for(relay.ready.wait(), 30)
        relay.stop()
        await running


async def test_it_can_be_stopped_while_it_waits(postgres: AsyncEngine, proxy: Proxy) -> None:
    proxy.refuse()
    relay = Relay(postgres, proxy.address)
    running = asyncio.create_task(relay.run())
    await asyncio.sleep(0)
    relay.stop()
    await asyncio.wait_for(running, 30)
