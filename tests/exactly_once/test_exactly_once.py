"""The promise itself: each committed order takes effect exactly once in each consumer.

Producers commit and roll back at random while relays and workers are killed with -9 and the broker
and the database crash and come back. EVWORKER_TEST_SEED runs one run again as it was, as far as
processes can be; EVWORKER_TEST_ORDERS makes it longer (`make test-long`).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import (
    BrokerVersion,
    Connection,
    Envelope,
    apply_topology,
    browse_dead_letters,
    count_messages,
    replay_dead_letters,
)
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.database.tables import outbox
from evworker.broker.embedded import EmbeddedBroker
from evworker.workers import plan_topology
from tests.database_node import DatabaseNode, MariaNode, PostgresNode
from tests.exactly_once.cast import Member, Producer
from tests.exactly_once.shop import CONSUMERS, effects, metadata, orders, shop
from tests.services import on_embedded
from tests.waiting import eventually
from tests.workers.rabbitmq_node import Node

pytestmark = pytest.mark.broker

SEED = int(os.environ.get("EVWORKER_TEST_SEED", "20111201"))
ORDERS = int(os.environ.get("EVWORKER_TEST_ORDERS", "200"))
DISTURBANCES = ORDERS // 50
PRODUCERS = 8
RELAYS = 2
WORKERS = 3
QUEUES = tuple(f"shop.{name}" for name in CONSUMERS)
STANDSTILL_S = 60.0
COPY = "copy"


class Sqlite(DatabaseNode):
    """A file: there is no server that could be killed."""

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/shop.db"

    def prepare(self) -> None:
        pass

    def start(self) -> None:
        pass

    def command(self) -> list[str]:
        return []

    def answers(self) -> bool:
        return True


class EmbeddedNode:
    """The embedded broker, which is away where a node would be down."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.url = broker.url
        self._faults = broker.faults

    async def restart(self) -> None:
        self._faults.go_away()
        await self._faults.come_back()

    def remembers(self, _queues: set[str]) -> bool:
        return True


@pytest.fixture(
    params=[
        pytest.param(PostgresNode, id="postgresql", marks=pytest.mark.database),
        pytest.param(MariaNode, id="mariadb", marks=pytest.mark.database),
        pytest.param(Sqlite, id="sqlite"),
    ]
)
def database(request: pytest.FixtureRequest) -> Iterator[DatabaseNode]:
    # Not in pytest's folder, which is its user's alone: the server may run as another.
    with TemporaryDirectory(prefix="evworker-test-", ignore_cleanup_errors=True) as folder:
        node: DatabaseNode = request.param(Path(folder))
        node.prepare()
        node.start()
        yield node
        node.kill()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Node | EmbeddedNode]:
    if on_embedded():
        async with EmbeddedBroker() as embedded:
            yield EmbeddedNode(embedded)
        return
    folder = tmp_path / "rabbitmq"
    folder.mkdir()
    node = Node(folder)
    node.start()
    yield node
    node.kill()


class Run:
    """One run: its servers, its processes, and what they leave behind."""

    def __init__(self, database: DatabaseNode, broker: Node | EmbeddedNode, folder: Path) -> None:
        self.database = database
        self.broker = broker
        self.engine: AsyncEngine = open_engine(database.url, connections=PRODUCERS + 2)
        environment = {
            "EVWORKER_DATABASE_URL": database.url,
            "EVWORKER_BROKER_URL": broker.url,
        }
        relay = ("outbox", "relay", "--lease", "5s")
        worker = ("run", "tests.exactly_once.shop", "--no-relay", "--log-format", "console")
        self.members = [
            *(Member(relay, environment, folder / f"relay {one}.log") for one in range(RELAYS)),
            *(Member(worker, environment, folder / f"worker {one}.log") for one in range(WORKERS)),
        ]

    async def prepare(self) -> None:
        await make_tables(self.engine)
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with Connection(self.broker.url, name="exactly once") as connection:
            plan = plan_topology([shop], version=BrokerVersion(3, 10))
            await apply_topology(connection, plan)
            channel = await connection.channel()
            quorum = {"x-queue-type": "quorum"}
            await channel.queue_declare(COPY, durable=True, arguments={**quorum})
            await channel.queue_bind(COPY, "events", "orders.taken")
        names = {COPY, *(queue.name for queue in plan.queues)}
        await eventually(lambda: self.broker.remembers(names), "the queues are on disk")

    async def disturb(self, dice: random.Random, calm: asyncio.Event) -> None:
        """Kill one after the other, servers now and then among them."""
        servers = [self._database_restarts, self._broker_restarts]
        victims = [*servers, *dice.choices([*servers, *[self._a_member_dies] * 8], k=DISTURBANCES)]
        try:
            for victim in victims:
                await asyncio.sleep(dice.uniform(0.3, 1.5))
                await victim(dice)
        finally:
            calm.set()

    async def _a_member_dies(self, dice: random.Random) -> None:
        await dice.choice(self.members).die()

    async def _broker_restarts(self, _dice: random.Random) -> None:
        await self.broker.restart()

    async def _database_restarts(self, _dice: random.Random) -> None:
        await asyncio.to_thread(self.database.kill)
        await asyncio.to_thread(self.database.start)

    async def committed(self) -> set[str]:
        async with self.engine.connect() as connection:
            return set(await connection.scalars(sa.select(orders.c.order_id)))

    async def effects(self) -> Counter[tuple[str, str]]:
        async with self.engine.connect() as connection:
            rows = await connection.execute(sa.select(effects.c.consumer, effects.c.order_id))
            return Counter((row.consumer, row.order_id) for row in rows)

    async def unsent(self) -> int:
        async with self.engine.connect() as connection:
            return await connection.scalar(sa.select(sa.func.count()).select_from(outbox)) or 0

    async def settle(self) -> None:
        """Wait until everything has taken effect, for as long as anything moves."""
        while (left := await self.left()) != (0, 0):
            unsent, missing = left
            await eventually(
                partial(self.has_moved, left),
                f"{unsent} events are not sent and {missing} effects are missing, and that changes",
                timeout_s=STANDSTILL_S,
            )

    async def left(self) -> tuple[int, int]:
        """How many events are not sent yet, and how many effects are missing."""
        expected = len(await self.committed()) * len(CONSUMERS)
        return await self.unsent(), max(0, expected - (await self.effects()).total())

    async def has_moved(self, since: tuple[int, int]) -> bool:
        await self.replay_dead_letters()
        return await self.left() != since

    async def replay_dead_letters(self) -> None:
        """As one would: some orders fail more often than they are tried again."""
        async with Connection(self.broker.url, name="settling") as connection:
            for queue in QUEUES:
                if await count_messages(connection, f"{queue}.dlq"):
                    await replay_dead_letters(connection, f"{queue}.dlq")

    async def arrivals(self) -> dict[str, list[int]]:
        """The numbers of each customer's orders in the order in which they first arrived."""
        first: dict[str, list[int]] = defaultdict(list)
        async with Connection(self.broker.url, name="arrivals") as connection:
            for letter in await browse_dead_letters(connection, COPY, 1_000_000):
                assert isinstance(letter.envelope, Envelope)
                order = letter.envelope.value()
                if order["number"] not in first[order["customer"]]:
                    first[order["customer"]].append(order["number"])
        return first


@pytest.fixture
async def run(
    database: DatabaseNode, broker: Node | EmbeddedNode, tmp_path: Path
) -> AsyncIterator[Run]:
    run = Run(database, broker, tmp_path)
    await run.prepare()
    for member in run.members:
        await member.start()
    yield run
    await asyncio.gather(*(member.end() for member in run.members))
    await run.engine.dispose()


async def test_each_committed_order_takes_effect_exactly_once(run: Run) -> None:
    producers = [Producer(number, run.engine, SEED) for number in range(PRODUCERS)]
    calm = asyncio.Event()
    taking = (producer.take(ORDERS // PRODUCERS, calm) for producer in producers)
    await asyncio.gather(run.disturb(random.Random(SEED), calm), *taking)
    await run.settle()
    codes = await asyncio.gather(*(member.stop() for member in run.members))

    committed = await run.committed()
    assert len(committed) > ORDERS / 2
    expected = Counter({(name, order): 1 for name in CONSUMERS for order in committed})
    assert await run.effects() == expected
    assert await run.unsent() == 0
    arrivals = await run.arrivals()
    assert sum(map(len, arrivals.values())) == len(committed)
    assert [numbers for numbers in arrivals.values() if numbers != sorted(numbers)] == []
    assert codes == [0] * len(run.members)
