"""What the outbox's tests share: engines on databases of their own, and running relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aio_pika.abc import AbstractQueue
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import Envelope
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.outbox.relay import Relay
from tests.broker.conftest import Take
from tests.broker.events import OrderPlaced
from tests.databases import own_database
from tests.proxy import Proxy, listening


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a PostgreSQL database of the test's own, with evworker's tables."""
    opened = open_engine(postgres_url)
    await make_tables(opened)
    yield opened
    await opened.dispose()


@pytest.fixture(params=["postgresql", "mariadb"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine on a database that takes two writers at a time."""
    with own_database(request.param, tmp_path) as url:
        opened = open_engine(url)
        await make_tables(opened)
        yield opened
        await opened.dispose()


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[Relay]:
    """A relay at work; it is stopped, and must end without an error."""
    task = asyncio.create_task(relay.run())
    ready = asyncio.create_task(relay.ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    try:
        yield relay
    finally:
        relay.stop()
        await task


@asynccontextmanager
async def way_to(engine: AsyncEngine) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the engine's database, and the database's URL by way of it."""
    url = engine.url
    async with listening(f"postgresql://{url.host}:{url.port or 5432}") as proxy:
        through = make_url(url).set(host="127.0.0.1", port=proxy.port)
        yield proxy, through.render_as_string(hide_password=False)


StartRelay = Callable[..., Awaitable[Relay]]


@pytest.fixture
async def start_relay(broker_url: str, exchange: str) -> AsyncIterator[StartRelay]:
    """Starts relays, which are stopped when the test is over."""
    async with AsyncExitStack() as started:

        async def start(database: str | AsyncEngine, **options: Any) -> Relay:
            broker = options.pop("broker", broker_url)
            relay = Relay(database, broker, exchange=exchange, **options)
            return await started.enter_async_context(running(relay))

        yield start


class Arrivals:
    """What has come to a queue, in order: the order id of each event, and its envelope's id."""

    def __init__(self, queue: AbstractQueue | str, take: Take) -> None:
        self.orders: list[str] = []
        self.ids: list[str] = []
        self.keys: dict[str, list[str]] = {}
        """The order ids of each key, duplicates left out."""
        self._queue = queue
        self._take = take

    async def look(self) -> list[str]:
        """The order ids of all that has come so far."""
        for message in await self._take(self._queue):
            envelope = Envelope.parse(message.body)
            order_id = envelope.decode(OrderPlaced).order_id
            if envelope.key is not None and envelope.id not in self.ids:
                self.keys.setdefault(envelope.key, []).append(order_id)
            self.orders.append(order_id)
            self.ids.append(envelope.id)
            assert message.message_id == envelope.id
        return self.orders

    async def are(self, *order_ids: str) -> bool:
        """Whether exactly these have come, each once or more, in any order."""
        return set(await self.look()) == set(order_ids)
