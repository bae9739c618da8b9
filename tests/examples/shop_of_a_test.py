"""The shop's plugins under names of one test, so that tests share a broker and no queue."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import (
    Connection,
    Letter,
    Publisher,
    browse_dead_letters,
    count_messages,
    format_duration,
)
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.workers import Counts, Plugin, Worker
from shop.tables import Payment
from shop.tables import make_tables as make_tables_of_the_shop
from tests.conftest import Cleanup
from tests.waiting import eventually

WAITS_THAT_HANDLERS_ASK_FOR = ("2s",)


class Shop:
    """A running shop: what its plugins' lifespans yielded, and a way in."""

    def __init__(
        self, name: str, publisher: Publisher, connection: Connection, engine: AsyncEngine
    ) -> None:
        self.name = name
        self.publisher = publisher
        self.engine = engine
        self.states: dict[str, Any] = {}
        self._connection = connection
        self._worker: Worker | None = None

    @property
    def counts(self) -> Counts:
        assert self._worker is not None
        return self._worker.counts

    async def payments(self) -> list[tuple[str, Decimal]]:
        """What the database says was paid, and paid back."""
        async with self.engine.connect() as connection:
            found = await connection.execute(select(Payment.order_number, Payment.amount))
            return sorted((number, amount) for number, amount in found)

    async def dead_letters(self, queue: str) -> list[Letter]:
        return await browse_dead_letters(self._connection, f"{self.name}.{queue}.dlq", 1_000)

    async def unrouted(self) -> int:
        return await count_messages(self._connection, f"{self.name}.unrouted") or 0

    @asynccontextmanager
    async def work(self, plugins: Iterable[Plugin], broker_url: str) -> AsyncIterator[None]:
        copies = [self._copy(plugin) for plugin in plugins]
        worker = self._worker = Worker(
            copies, broker_url, exchange=self.name, database=self.engine, relay=True
        )
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
            copy.consumer(
                *(consumer.event_types or consumer.patterns),
                retry=consumer.retry,
                transactional=consumer.transactional,
            )(consumer.handler)
        return copy


@asynccontextmanager
async def open_shop(
    plugins: tuple[Plugin, ...],
    broker_url: str,
    unique: str,
    cleanup: Cleanup,
    database_url: str = "sqlite://",
) -> AsyncIterator[Shop]:
    """Run the plugins until the block ends; what they leave on the broker is deleted later.

    The database is SQLite in a folder of its own, unless one is named.
    """
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
        open_database(database_url) as engine,
    ):
        shop = Shop(unique, publisher, connection, engine)
        async with shop.work(plugins, broker_url):
            yield shop


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[AsyncEngine]:
    """With the tables of the shop and those of evworker."""
    with TemporaryDirectory() as folder:
        engine = open_engine(f"sqlite:///{folder}/shop.db" if url == "sqlite://" else url)
        await make_tables(engine)
        await make_tables_of_the_shop(engine)
        yield engine
        await engine.dispose()
