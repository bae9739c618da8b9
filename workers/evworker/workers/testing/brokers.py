"""The broker of a test: one in memory that is the test's own, or a part of a real one.

Both say when nothing is under way any more. The embedded one is asked for its queues, and lets the
time pass that messages would wait. A real one can't be asked for what is on its way, so there the
ledger is: all that its queues were given must have come to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import ClassVar
from uuid import uuid4

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic

from evworker.broker import BrokerError, Connection, Envelope, UndecodableError
from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors
from evworker.broker.embedded import EmbeddedBroker
from evworker.broker.topology import DEFAULT_EXCHANGE, unrouted_exchange
from evworker.workers.testing.ledger import Ledger
from evworker.workers.testing.watching import WatchedWorker

TAP = "evworker.test.tap"


class OwnBroker:
    """The embedded broker, with nobody else on it."""

    prefix = ""
    exchange = DEFAULT_EXCHANGE
    shortens_waits = False
    """Whether waits are made short, since they can't be skipped."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.url = broker.url

    def moves(self) -> object:
        """Differs from an earlier time if any event has come since."""
        return self.broker.faults.publishes

    def is_quiet(self, worker: WatchedWorker, ledger: Ledger) -> bool:  # noqa: ARG002
        """Whether no message is on its way to a consumer, or with one; some may wait yet."""
        waiting = {queue for queue in worker.queues if ".retry." in queue}
        return not any(
            self.broker.unsettled(queue) or (queue not in waiting and self.broker.ready(queue))
            for queue in worker.queues
        )

    def skip_wait(self, worker: WatchedWorker) -> bool:
        """Let the time pass until the first waiting message is due; False if none waits."""
        if not any(self.broker.ready(queue) for queue in worker.queues):
            return False
        self.broker.clock.put_forward(self.broker.clock.due_in_s() or 0.0)
        return True


class SharedBroker:
    """A real broker, on which all that is the test's own begins with a name of its own."""

    shortens_waits = True
    chosen_url: ClassVar[str | None] = None
    """The broker that pytest was told to test on, for tests that name none."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.exchange = f"evworker-test-{uuid4().hex[:12]}"
        self.prefix = f"{self.exchange}."

    def moves(self) -> object:
        return None

    def is_quiet(self, worker: WatchedWorker, ledger: Ledger) -> bool:  # noqa: ARG002
        return not any(owed > 0 for owed in ledger.owed.values())

    def skip_wait(self, worker: WatchedWorker) -> bool:  # noqa: ARG002
        return False


@asynccontextmanager
async def open_broker(url: str | None) -> AsyncIterator[OwnBroker | SharedBroker]:
    """The real one of this URL, or one that ends with the block."""
    if url is not None:
        yield SharedBroker(url)
        return
    async with EmbeddedBroker() as broker:
        yield OwnBroker(broker)


class Tap:
    """A queue that gets each event that is published, routed or not, and takes from nobody.

    It is bound like the consumers' queues, and to what catches the unrouted: a binding to all would
    leave none unrouted.
    """

    def __init__(self, connection: Connection, *, exchange: str, prefix: str) -> None:
        self.queue = prefix + TAP
        self._connection = connection
        self._exchange = exchange
        self._channel: AbstractChannel | None = None

    async def open(self, patterns: Iterable[str]) -> None:
        """Declare it, once its exchange is there."""
        channel = await self._opened()
        await channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": "classic"})
        for pattern in dict.fromkeys(patterns):
            await channel.queue_bind(self.queue, self._exchange, pattern)
        await channel.queue_bind(self.queue, unrouted_exchange(self._exchange), "")

    async def drain(self, ledger: Ledger, until: float) -> bool:
        """Tell the ledger of all that was published; False if that can't be done.

        The connection was lost, or more and more was published `until` then, by the loop's clock.
        """
        try:
            return await self._drain(ledger, until)
        except BrokerError:
            return False

    async def _drain(self, ledger: Ledger, until: float) -> bool:
        channel = await self._opened()
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            with broker_errors(f"take from {self.queue!r}"):
                message = await channel.basic_get(self.queue, no_ack=True, timeout=RPC_TIMEOUT_S)
            if not isinstance(message.delivery, Basic.GetOk):
                return True
            topic = message.routing_key or ""
            try:
                envelope = Envelope.read(message.body, message.header.properties, topic)
            except UndecodableError:
                ledger.is_published(topic, None)
            else:
                ledger.is_published(topic, envelope)
        return False

    async def _opened(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel()
        return self._channel


async def remove(connection: Connection, exchange: str, queues: Iterable[str]) -> None:
    """Delete what a test leaves on a broker that others use."""
    channel = await connection.channel()
    for queue in queues:
        await channel.queue_delete(queue)
    for name in (exchange, unrouted_exchange(exchange)):
        await channel.exchange_delete(name)
    await channel.close()
