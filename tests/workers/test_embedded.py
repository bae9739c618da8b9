"""A worker on the embedded broker: retries, dead letters and replays, without a server."""

from __future__ import annotations

import asyncio

from evworker.broker import Connection, Publisher, browse_dead_letters, replay_dead_letters
from evworker.broker.embedded import EmbeddedBroker
from evworker.workers import Context, Plugin, Retry, Worker
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, OutOfLuckError, Seen, until_ready


async def test_what_fails_is_retried_and_then_a_dead_letter_that_can_be_replayed() -> None:
    seen = Seen()
    lucky = False

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        seen.note(event, ctx)
        if not lucky:
            raise OutOfLuckError("no luck")

    plugin = Plugin("billing")
    plugin.consumer(OrderPlaced, name="charge", queue="charge", retry=Retry("20ms"))(charge)
    async with (
        EmbeddedBroker() as broker,
        Connection(broker.url, name="test") as connection,
        Publisher(connection, source="test") as publisher,
    ):
        worker = Worker([plugin], broker.url)
        running = asyncio.create_task(worker.run())
        await until_ready(worker)
        await publisher.publish(OrderPlaced(order_id="1"))

        async def letters() -> int:
            return len(await browse_dead_letters(connection, "charge.dlq", 10))

        await eventually(letters, "a dead letter")
        assert seen.attempts == [1, 2]
        lucky = True
        await replay_dead_letters(connection, "charge.dlq")
        await eventually(lambda: len(seen) == 3, "a third attempt")
        worker.stop()
        await running
