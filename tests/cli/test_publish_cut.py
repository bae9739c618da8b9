"""`evworker publish --ndjson` on a network that fails under it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from evworker.broker import count_messages
from tests.cli.command import Command, line_with
from tests.cli.conftest import Exchange
from tests.proxy import Proxy
from tests.waiting import eventually

LINES = 8_000
PUBLISH = ("publish", "a.b", "--ndjson", "lines", "--rate", "4000")


@pytest.fixture
async def proxy(broker_url: str, evworker: Command, exchange: Exchange) -> AsyncIterator[Proxy]:
    proxy = Proxy(broker_url)
    await proxy.open()
    evworker.environment["EVWORKER_BROKER_URL"] = proxy.url
    evworker.write("lines", "\n".join(f'{{"n": {number}}}' for number in range(LINES)))
    yield proxy
    await proxy.close()


async def flows(exchange: Exchange) -> bool:
    return bool(await count_messages(exchange.connection, f"{exchange.name}.copy"))


async def arrived(exchange: Exchange) -> set[int]:
    return {envelope.value()["n"] for envelope in await exchange.published()}


async def test_a_connection_that_comes_back_costs_nothing(
    evworker: Command, exchange: Exchange, proxy: Proxy
) -> None:
    async with evworker.started(*PUBLISH) as process:
        await eventually(lambda: flows(exchange))
        proxy.cut()
        line = await line_with(process.stdout, "published")
        assert await process.wait() == 0
    assert f"published {LINES:,} events" in line
    assert await arrived(exchange) == set(range(LINES))


async def test_a_broker_that_stays_away_ends_it_with_how_far_it_came(
    evworker: Command, exchange: Exchange, proxy: Proxy
) -> None:
    async with evworker.started(*PUBLISH) as process:
        await eventually(lambda: flows(exchange))
        await proxy.close()
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 4
    *_, last = err.decode().splitlines()
    told = re.fullmatch(r"([\d,]+) events? published before; go on with number (\d+)", last)
    assert told is not None, err.decode()
    assert "Traceback" not in err.decode()
    numbers = await arrived(exchange)
    assert len(numbers) >= int(told[1].replace(",", ""))
    # All lines before that one are on the broker; of those that follow, some may be.
    assert set(range(int(told[2]) - 1)) <= numbers
