"""`evworker publish --via-outbox` and `evworker outbox relay`: into the database, and out of it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import Envelope
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.database.tables import outbox
from tests.cli.command import Command, line_with
from tests.cli.conftest import Exchange
from tests.proxy import Proxy
from tests.waiting import eventually


@pytest.fixture
async def postgres(postgres_url: str, evworker: Command) -> AsyncIterator[AsyncEngine]:
    """PostgreSQL with evworker's tables, which the command needs no option to find."""
    evworker.environment["EVWORKER_DATABASE_URL"] = postgres_url
    engine = open_engine(postgres_url)
    await make_tables(engine)
    yield engine
    await engine.dispose()


async def bodies(engine: AsyncEngine) -> list[bytes]:
    async with engine.connect() as connection:
        return list(await connection.scalars(select(outbox.c.body).order_by(outbox.c.seq)))


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(select(func.count()).select_from(outbox))).scalar_one()


# Into the database


async def test_an_event_is_written_and_no_broker_is_needed(
    evworker: Command, engine: AsyncEngine, database_url: str
) -> None:
    evworker.environment["EVWORKER_BROKER_URL"] = "amqp://127.0.0.1:1"
    written = await evworker(
        *("publish", "orders.placed", '{"order_id": "42"}', "--via-outbox", "-d", database_url),
        *("--key", "customer-7", "--id", "e-1"),
    )
    assert (written.code, written.out, written.err) == (0, "e-1  orders.placed\n", "")
    (body,) = await bodies(engine)
    envelope = Envelope.parse(body)
    assert (envelope.id, envelope.key) == ("e-1", "customer-7")
    assert json.loads(body)["data"] == {"order_id": "42"}


async def test_a_stream_is_written_and_what_is_no_event_is_told(
    evworker: Command, postgres: AsyncEngine
) -> None:
    lines = [b'{"n": %d}' % number for number in range(1_200)]
    lines[700] = b"oops"
    written = await evworker(
        "publish", "numbers", "--ndjson", "-", "--via-outbox", "--json", stdin=b"\n".join(lines)
    )
    assert written.code == 1
    assert "line 701: not JSON" in written.err
    told = written.json
    assert told.pop("seconds") > 0
    assert told == {"written": 1_199, "refused": 1}
    numbers = [json.loads(body)["data"]["n"] for body in await bodies(postgres)]
    assert numbers == [number for number in range(1_200) if number != 700]


async def test_a_slow_stream_is_committed_as_it_comes(
    evworker: Command, postgres: AsyncEngine
) -> None:
    async with evworker.started("publish", "n", "--ndjson", "-", "--via-outbox") as process:
        assert process.stdin is not None
        for number in (1, 2):
            process.stdin.write(b"{}\n")

            async def is_there(number: int = number) -> bool:
                return await count(postgres) == number

            await eventually(is_there, "the line that came is committed", timeout_s=30)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert err.decode() == "interrupted; 2 events written\n"
    assert process.returncode == 130


async def test_when_the_database_breaks_off_it_says_what_is_committed(
    evworker: Command, postgres: AsyncEngine, postgres_url: str
) -> None:
    proxy = Proxy(postgres_url)
    await proxy.open()
    evworker.environment["EVWORKER_DATABASE_URL"] = proxy.url
    async with evworker.started("publish", "n", "--ndjson", "-", "--via-outbox") as process:
        assert process.stdin is not None
        process.stdin.write(b"{}\n" * 500)

        async def are_there() -> bool:
            return await count(postgres) == 500

        await eventually(are_there, "a transaction is committed", timeout_s=30)
        proxy.refuse()
        proxy.cut()
        _, err = await process.communicate(b"{}\n" * 500)
    await proxy.close()
    first, last = err.decode().splitlines()
    assert first.startswith("error: ")
    assert last == "500 events written before; go on with number 501"
    assert process.returncode == 5
    assert await count(postgres) == 500


# Out of it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_relay_publishes_what_is_written_until_a_signal_stops_it(
    number: signal.Signals, evworker: Command, exchange: Exchange, postgres: AsyncEngine
) -> None:
    await evworker("publish", "orders.placed", '{"n": 1}', "--via-outbox", "--count", "3")
    async with evworker.started("outbox", "relay", "--name", "tester") as process:
        ready = json.loads(await line_with(process.stderr, "ready"))
        assert (ready["logger"], ready["relay"]) == ("evworker.relay", "tester")

        async def is_empty() -> bool:
            return await count(postgres) == 0

        await eventually(is_empty, "all is published", timeout_s=30)
        status = (await evworker("outbox", "status", "--json")).json
        assert [relay["name"] for relay in status["relays"]] == ["tester"]
        process.send_signal(number)
        stopped = json.loads(await line_with(process.stderr, "stopped"))
        assert await process.wait() == 0
    assert stopped["sent"] == 3
    published = await exchange.published()
    assert [envelope.topic for envelope in published] == ["orders.placed"] * 3
    assert len({envelope.id for envelope in published}) == 3
    assert (await evworker("outbox", "status", "--json")).json["relays"] == []


async def test_two_relays_of_one_name_publish_everything_once(
    evworker: Command, exchange: Exchange, postgres: AsyncEngine
) -> None:
    relaying = ("outbox", "relay", "--name", "twin", "--batch", "20")
    async with evworker.started(*relaying) as one, evworker.started(*relaying) as other:
        await asyncio.gather(*(line_with(relay.stderr, "ready") for relay in (one, other)))
        await evworker("publish", "n", "--via-outbox", "--count", "600")

        async def is_empty() -> bool:
            return await count(postgres) == 0

        await eventually(is_empty, "all is published", timeout_s=30)
        for relay in (one, other):
            relay.send_signal(signal.SIGTERM)
        assert [await relay.wait() for relay in (one, other)] == [0, 0]
    assert len({envelope.id for envelope in await exchange.published()}) == 600


async def test_a_relay_waits_for_a_database_that_is_not_there_and_outlives_its_absence(
    evworker: Command, exchange: Exchange, postgres: AsyncEngine, postgres_url: str
) -> None:
    proxy = Proxy(postgres_url)
    through = {"EVWORKER_DATABASE_URL": proxy.url}
    async with evworker.started("outbox", "relay", env=through) as process:
        await line_with(process.stderr, "can't begin yet, trying again")
        await proxy.open()
        await line_with(process.stderr, "ready")
        proxy.refuse()
        proxy.cut()
        await line_with(process.stderr, "the database fails, trying again")
        await evworker("publish", "orders.placed", "--via-outbox")
        await proxy.open()

        async def is_empty() -> bool:
            return await count(postgres) == 0

        await eventually(is_empty, "it goes on by itself", timeout_s=30)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    await proxy.close()
    assert len(await exchange.published()) == 1
