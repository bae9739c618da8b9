"""The shop's plugins under names of one test, so that tests share a broker and no queue."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from evworker.broker import (
    Connection,
    Letter,
    Publisher,
    browse_dead_letters,
    count_messages,
    format_duration,
)
from evworker.workers import Counts, Plugin, Worker
from tests.conftest import Cleanup
from tests.waiting import eventually

WAITS_THAT_HANDLERS_ASK_FOR = ("2s",)


class Shop:
    """A running shop: what its plugins' lifespans yielded, and a way in."""

    def __init__(self, name: str, publisher: Publisher, connection: Connection) -> None:
        self.name = name
        self.publisher = publisher
        self.states: dict[str, Any] = {}
        self._connection = connection
        self._worker: Worker | None = None

    @property
    def counts(self) -> Counts:
        assert self._worker is not None
        return self._worker.counts

    async def dead_letters(self, queue: str) -> list[Letter]:
        return await browse_dead_letters(self._connection, f"{self.name}.{queue}.dlq", 1_000)

    async def unrouted(self) -> int:
        return await count_messages(self._connection, f"{self.name}.unrouted") or 0

    @asynccontextmanager
    async def work(self, plugins: Iterable[Plugin], broker_url: str) -> AsyncIterator[None]:
        copies = [self._copy(plugin) for plugin in plugins]
        worker = self._worker = Worker(copies, broker_url, exchange=self.name)
        running = asyncio.create_task(worker.run())
        try:
            await eventually(lambda: worker.ready.is_set() or running.done(), "the worker is ready")
            yield
        finally:
            worker.stop()
            await running

    def _copy(self, plugin: Plugin) -> Plugin:
        @asynccontextmanager
        async def lifespan() -> AsyncIterator[Any]:
            assert plugin.lifespan is not None
            async with plugin.lifespan() as state:
                self.states[plugin.name] = state
                yield state

        copy = Plugin(f"{self.name}.{plugin.name}", lifespan=lifespan)
        for consumer in plugin.consumers:
            copy.consumer(*(consumer.event_types or consumer.patterns), retry=consumer.retry)(
                consumer.handler
            )
        return copy


@asynccontextmanager
async def open_shop(
    plugins: tuple[Plugin, ...], broker_url: str, unique: str, cleanup: Cleanup
) -> AsyncIterator[Shop]:
    """Run the plugins until the block ends; what they leave on the broker is deleted later."""
    for plugin in plugins:
        for consumer in plugin.consumers:
            delays = map(format_duration, consumer.retry.delays_s)
            cleanup.queue(
                f"{unique}.{consumer.name}", retry_delays=(*delays, *WAITS_THAT_HANDLERS_ASK_FOR)
            )
    cleanup.queue(f"{unique}.unrouted")
    cleanup.exchange(f"{unique}.unrouted")
    cleanup.exchange(unique)
    async with (
        Connection(broker_url, name=unique) as connection,
        Publisher(broker_url, exchange=unique) as publisher,
    ):
        shop = Shop(unique, publisher, connection)
        async with shop.work(plugins, broker_url):
            yield shop
