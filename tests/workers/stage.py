"""Where a plugin is put on, with everything that it sees and leaves behind: real, and its own.

Each test has an exchange and queues of its own, so that tests can share a broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import aiormq

from evworker.broker import (
    BrokerVersion,
    Connection,
    Envelope,
    Event,
    Letter,
    Publisher,
    apply_topology,
    browse_dead_letters,
    count_messages,
)
from evworker.workers import AnyEvent, Context, Plugin, Retry, Worker, plan_topology
from tests.conftest import Cleanup
from tests.waiting import eventually

SOON = "20ms"
"""A retry that a test does not want to wait for."""

ANY_VERSION = BrokerVersion(3, 10)  # names of queues are the same on all

STOP_TIMEOUT_S = 60.0


class UserRegistered(Event, topic="users.registered"):
    user_id: str


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: str


class PaymentProcessed(Event, topic="payments.processed"):
    order_id: str


class OutOfLuckError(Exception):
    """What handlers fail with."""


@dataclass
class Seen:
    """What a handler was given, in order."""

    events: list[Any] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)

    async def __call__(self, event: Any, ctx: Context) -> None:
        """To be used as a handler that succeeds."""
        self.note(event, ctx)

    def note(self, event: Any, ctx: Context) -> None:
        self.events.append(event)
        self.contexts.append(ctx)

    @property
    def topics(self) -> list[str]:
        return [ctx.envelope.topic for ctx in self.contexts]

    @property
    def ids(self) -> list[str]:
        return [ctx.envelope.id for ctx in self.contexts]

    @property
    def attempts(self) -> list[int]:
        return [ctx.attempt for ctx in self.contexts]

    def __len__(self) -> int:
        return len(self.events)


class Anonymous(aiormq.spec.Basic.Properties):
    """Properties without a message id, which aiormq otherwise gives to every message."""

    def marshal(self) -> bytes:
        self.message_id = None
        return super().marshal()


class Stage:
    """A broker, one exchange on it, and whoever publishes to it or looks at what is left."""

    def __init__(self, url: str, exchange: str, cleanup: Cleanup) -> None:
        self.url = url
        self.exchange = exchange
        self.connection = Connection(url, name=f"test {exchange}")
        self.publisher = Publisher(self.connection, exchange=exchange, source="test")
        self._cleanup = cleanup
        cleanup.exchange(exchange)
        cleanup.exchange(f"{exchange}.unrouted")
        cleanup.queue(f"{exchange}.unrouted")

    def queue(self, name: str) -> str:
        """The name of a queue of this test's own; it and its family are deleted in the end."""
        return self._cleanup.queue(f"{self.exchange}.{name}", family=True)

    def plugin(
        self, handler: Callable[..., Any], *events: type[Event] | str, **options: Any
    ) -> Plugin:
        """A plugin of one consumer: `charge`, from the queue `charge`, without another attempt."""
        plugin = Plugin("billing")
        options = {"name": "charge", "queue": self.queue("charge"), "retry": Retry(), **options}
        plugin.consumer(*(events or ("#",)), **options)(handler)
        return plugin

    def worker(self, *plugins: Plugin, url: str | None = None, **options: Any) -> Worker:
        """A worker of these plugins, whose queues are deleted in the end."""
        self._expect(plugins)
        return Worker(plugins, url or self.url, exchange=self.exchange, **options)

    def _expect(self, plugins: Iterable[Plugin]) -> None:
        for queue in plan_topology(plugins, exchange=self.exchange, version=ANY_VERSION).queues:
            self._cleanup.queue(queue.name)

    @asynccontextmanager
    async def working(self, *plugins: Plugin, **options: Any) -> AsyncIterator[Worker]:
        """A worker that consumes, and that has stopped gracefully once the block is left."""
        worker = self.worker(*plugins, **options)
        async with running(worker):
            await until_ready(worker)
            yield worker

    async def work(self, *plugins: Plugin, **options: Any) -> Worker:
        """Work until every queue is empty."""
        worker = self.worker(*plugins, burst=True, **options)
        await asyncio.wait_for(worker.run(), STOP_TIMEOUT_S)
        return worker

    async def declare(self, *plugins: Plugin) -> None:
        """Have the queues there, as a worker that came and went would leave them."""
        self._expect(plugins)
        topology = plan_topology(plugins, exchange=self.exchange, version=self.connection.version)
        assert not await apply_topology(self.connection, topology)

    async def publish(self, event: Event, **options: Any) -> Envelope:
        return await self.publisher.publish(event, **options)

    async def send(
        self,
        body: bytes = b"{}",
        *,
        topic: str = "orders.placed",
        queue: str | None = None,
        **properties: Any,
    ) -> None:
        """Publish as any other program would: to the exchange, or straight into a queue."""
        properties = {"content_type": "application/json", "delivery_mode": 2, **properties}
        channel = await self.connection.channel(confirms=True)
        kind = aiormq.spec.Basic.Properties if "message_id" in properties else Anonymous
        await channel.basic_publish(
            body,
            exchange="" if queue else self.exchange,
            routing_key=queue or topic,
            properties=kind(**properties),
        )
        await channel.close()

    async def letters(self, queue: str) -> list[Letter]:
        """The dead letters of a consumer's queue."""
        return await browse_dead_letters(self.connection, f"{queue}.dlq", 10_000)

    async def letter(self, queue: str) -> Letter:
        """The only dead letter, once it is there."""

        async def arrived() -> list[Letter]:
            return await self.letters(queue)

        (letter,) = await eventually(arrived, f"a dead letter in {queue}.dlq")
        return letter

    async def waiting_in(self, queue: str) -> int:
        """How many messages are ready in a queue."""
        count = await count_messages(self.connection, queue)
        assert count is not None, f"there is no queue {queue}"
        return count

    async def raw(self, queue: str) -> aio_pika.abc.AbstractIncomingMessage:
        """Take the next message of a queue, as aio-pika reads it."""
        connection = await aio_pika.connect(self.url)
        async with connection:
            channel = await connection.channel()
            taken = await (await channel.get_queue(queue)).get(no_ack=True)
            assert taken is not None
            return taken

    async def bound_queue(self, pattern: str) -> str:
        """A queue of nobody's, bound to the exchange."""
        name = self.queue(f"of {pattern}")
        channel = await self.connection.channel()
        await channel.queue_declare(name, durable=True)
        await channel.queue_bind(name, self.exchange, pattern)
        await channel.close()
        return name

    async def delete_queue(self, queue: str) -> None:
        channel = await self.connection.channel()
        await channel.queue_delete(queue)
        await channel.close()


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """The worker's run as a task; told to stop, and awaited, once the block is left."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        await asyncio.wait_for(task, STOP_TIMEOUT_S)


async def until_ready(worker: Worker) -> None:
    """Wait until the worker consumes from all its queues."""
    await asyncio.wait_for(worker.ready.wait(), STOP_TIMEOUT_S)


def headers_of(letter: Letter) -> Mapping[str, object]:
    return {name: value for name, value in letter.headers.items() if not name.startswith("x-")}


def order_id(event: AnyEvent | OrderPlaced) -> str:
    return event.order_id if isinstance(event, OrderPlaced) else str(event.data["order_id"])
