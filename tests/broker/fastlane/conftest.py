"""A queue with messages in it, and whoever consumes it, for as long as a connection comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiormq import spec

from evworker.broker import BrokerError, Connection
from evworker.broker.cancellation import cancel_all
from evworker.broker.delivery import Delivery
from evworker.broker.intake import Intake
from tests.broker.deadletters.letters import Sent, put
from tests.conftest import Cleanup


@pytest.fixture
async def queue(connection: Connection, unique: str, cleanup: Cleanup) -> str:
    """A quorum queue."""
    channel = await connection.channel()
    await channel.queue_declare(
        cleanup.queue(unique),
        durable=True,
        arguments={"x-queue-type": "quorum", "x-delivery-limit": 100},
    )
    await channel.close()
    return unique


async def fill(connection: Connection, queue: str, count: int, *, first: int = 0) -> None:
    numbers = range(first, first + count)
    await put(connection, queue, (Sent(id=f"id-{n}", body=b"%d" % n) for n in numbers))


class Consumer:
    """Acks what comes, and subscribes again when it has to."""

    def __init__(self, connection: Connection, queue: str, prefetch: int) -> None:
        self.came: list[int] = []
        self.losses: list[str] = []
        self._connection = connection
        self._queue = queue
        self._prefetch = prefetch
        self._acking: set[asyncio.Task[bool]] = set()

    async def run(self) -> None:
        while True:
            with suppress(BrokerError):
                intake = await Intake.open(
                    self._connection, self._queue, prefetch=self._prefetch, receive=self._receive
                )
                self.losses.append(await intake.ended())
                await intake.close()

    def _receive(self, delivery: Delivery) -> None:
        self.came.append(int(delivery.body))
        task = asyncio.create_task(delivery.ack())
        self._acking.add(task)
        task.add_done_callback(self._acking.discard)


@asynccontextmanager
async def consuming(
    connection: Connection, queue: str, *, prefetch: int = 100
) -> AsyncIterator[Consumer]:
    consumer = Consumer(connection, queue, prefetch)
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        await cancel_all(task)


async def publish_filling_headers(connection: Connection, queue: str) -> None:
    """A message whose headers fill a frame to the last few bytes."""
    channel = await connection.channel(confirms=True)
    room = channel.connection.connection_tune.frame_max - 60
    properties = spec.Basic.Properties(headers={"h": "x" * room}, message_id="1", delivery_mode=2)
    await channel.basic_publish(b"1", routing_key=queue, properties=properties)
    await channel.close()
