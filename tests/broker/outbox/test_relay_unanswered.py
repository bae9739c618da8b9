"""A relay, and a broker that confirms when it is told to."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.embedded import EmbeddedBroker
from evworker.broker.outbox.operating import outbox_status
from tests.broker.conftest import Bind, Take
from tests.broker.outbox.conftest import Arrivals, StartRelay, way_to
from tests.broker.outbox.written import is_empty, is_in, states, write
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("either_lane")


@pytest.fixture
def broker_url(embedded: EmbeddedBroker) -> str:
    return embedded.url


async def test_what_is_confirmed_while_the_database_is_away_is_settled_later(
    postgres: AsyncEngine,
    start_relay: StartRelay,
    bind: Bind,
    take: Take,
    embedded: EmbeddedBroker,
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    async with way_to(postgres) as (database, url):
        relay = await start_relay(url)
        embedded.faults.withhold_confirms()
        await write(postgres, None, None, order_id="1")
        await eventually(lambda: arrivals.are("1"))
        database.refuse()
        database.cut()
        embedded.faults.release_confirms()
        await eventually(lambda: relay._patience.database_is_away)  # noqa: SLF001
        await database.open()
        await eventually(lambda: is_empty(postgres), timeout_s=20)
        assert await arrivals.look() == ["1", "1"]  # once each
        assert relay.counts.sent == 2
        relay.stop()


async def test_events_that_are_never_confirmed_do_not_hold_up_the_others(
    postgres: AsyncEngine, start_relay: StartRelay, embedded: EmbeddedBroker
) -> None:
    relay = await start_relay(postgres)
    relay._publisher.timeout_s = 0.5  # noqa: SLF001
    embedded.faults.withhold_confirms()
    stuck, behind = await write(postgres, "a", "a")
    await eventually(lambda: is_in(postgres, stuck, "waiting"))
    embedded.faults.release_confirms()
    await write(postgres, None, "b")
    await eventually(lambda: relay.counts.sent == 2)
    assert await states(postgres) == {stuck: "waiting", behind: "ready"}
    assert (await outbox_status(postgres)).blocked_keys == 1
