"""`evworker tap`, live."""

from __future__ import annotations

import asyncio
import json

from evworker.broker import Envelope, Publisher
from tests.cli.command import Command, line_with
from tests.cli.conftest import Exchange


async def publish_until(exchange: Exchange, topic: str, seen: asyncio.Future[str]) -> str:
    """What the tap printed of it. It does not say when it is ready: events may come too early."""
    async with Publisher(exchange.connection, exchange=exchange.name) as publisher:
        while not seen.done():
            envelope = Envelope.parse(b'{"n": "\\u001b[31m"}', topic=topic)
            await publisher.publish_envelope(envelope)
            await asyncio.wait([seen], timeout=0.1)
    return seen.result()


async def test_events_go_by(evworker: Command, exchange: Exchange) -> None:
    async with evworker.started("tap", "orders.*") as process:
        seen = asyncio.ensure_future(line_with(process.stdout, "orders.placed"))
        line = await publish_until(exchange, "orders.placed", seen)
        await line_with(process.stderr, f"are not kept in {exchange.name}.unrouted")
    _, topic, _, key, data = line.split("  ")
    assert (topic, key, data) == ("orders.placed", "-", '{"n": "\\u001b[31m"}\n')


async def test_events_as_json_up_to_a_limit(evworker: Command, exchange: Exchange) -> None:
    async with evworker.started("tap", "--json", "--limit", "1") as process:
        seen = asyncio.ensure_future(line_with(process.stdout, "users.registered"))
        event = json.loads(await publish_until(exchange, "users.registered", seen))
        assert await process.wait() == 0
    assert event["topic"] == "users.registered"
    assert event["data"] == {"n": "\x1b[31m"}
    assert set(event) == {
        *("topic", "id", "time", "key", "source", "version", "data", "received_at")
    }


async def test_a_reader_that_has_seen_enough_is_no_failure(
    evworker: Command, exchange: Exchange
) -> None:
    async with evworker.started("tap") as process:
        seen = asyncio.ensure_future(line_with(process.stdout, "orders.placed"))
        await publish_until(exchange, "orders.placed", seen)
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # noqa: SLF001
        ended = asyncio.ensure_future(process.wait())
        async with Publisher(exchange.connection, exchange=exchange.name) as publisher:
            while not ended.done():
                await publisher.publish_envelope(Envelope.parse(b"1", topic="orders.placed"))
                await asyncio.wait([ended], timeout=0.1)
        assert await ended == 0
        assert process.stderr is not None
        assert "Traceback" not in (await process.stderr.read()).decode()


async def test_an_exchange_that_does_not_exist(evworker: Command, exchange: Exchange) -> None:
    result = await evworker("tap", "-e", f"{exchange.name}.nosuch")
    assert result.code == 4
    assert f"there is no exchange '{exchange.name}.nosuch'" in result.err
    assert "Traceback" not in result.err
