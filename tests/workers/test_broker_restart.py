"""A broker that is killed while events are published and consumed, and comes back.

On a private node: everybody else's stays up. The broker of EVWORKER_TEST_RABBITMQ_SERVER if that is
set, else the machine's own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest

from evworker.broker import PublishError
from evworker.workers import Context, Plugin, Retry, plan_topology
from tests.conftest import Cleanup
from tests.waiting import eventually
from tests.workers.rabbitmq_node import Node
from tests.workers.stage import ANY_VERSION, OrderPlaced, OutOfLuckError, Stage

pytestmark = [
    pytest.mark.broker,
    pytest.mark.real_broker("a node is killed, and has on disk what it confirmed"),
]

EVENTS = 1_000
COMING_BACK_S = 90.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("rabbitmq"))
    node.start()
    yield node
    node.kill()


@pytest.fixture
async def private_stage(node: Node, unique: str) -> AsyncIterator[Stage]:
    stage = Stage(node.url, unique, Cleanup(node.url))  # nobody cleans up: the node is thrown away
    async with stage.connection:
        await stage.publisher.open()
        yield stage


async def declare_for_good(stage: Stage, node: Node, plugin: Plugin) -> None:
    await stage.declare(plugin)
    plan = plan_topology([plugin], exchange=stage.exchange, version=ANY_VERSION)
    queues = {queue.name for queue in plan.queues}
    await eventually(lambda: node.remembers(queues), "the node has its queues on disk")


class Publishing:
    """Publishes events as a careful program does: a failed publish again, with the same id."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._free = asyncio.Semaphore(100)
        self.confirmed: set[str] = set()
        self.failed = 0

    async def all_events(self) -> None:
        await asyncio.gather(*(self._publish(number) for number in range(EVENTS)))

    async def _publish(self, number: int) -> None:
        id = f"e-{number}"
        async with self._free:
            while id not in self.confirmed:
                try:
                    await self._stage.publish(OrderPlaced(order_id=str(number)), id=id)
                except PublishError:
                    self.failed += 1
                else:
                    self.confirmed.add(id)


class Handling:
    """Every third event fails at its first attempt, and every hundredth at each."""

    def __init__(self) -> None:
        self.handled: set[str] = set()
        self.closed_after = EVENTS
        self.opened = asyncio.Event()

    async def __call__(self, event: OrderPlaced, ctx: Context) -> None:
        number = int(event.order_id)
        if number % 100 == 0 or (number % 3 == 0 and ctx.attempt == 1):
            raise OutOfLuckError
        if len(self.handled) >= self.closed_after:
            await self.opened.wait()
        self.handled.add(ctx.envelope.id)


RETRY = Retry("500ms")
ALL = {f"e-{number}" for number in range(EVENTS)}
HOPELESS = {f"e-{number}" for number in range(0, EVENTS, 100)}


async def check_nothing_is_lost(stage: Stage, handling: Handling) -> None:
    queue = stage.queue("charge")

    async def all_settled() -> bool:
        letters = await stage.letters(queue)
        assert {letter.failure.reason for letter in letters} == {"failed"}
        assert {letter.id for letter in letters} == HOPELESS
        return handling.handled == ALL - HOPELESS

    await eventually(all_settled, timeout_s=COMING_BACK_S)
    assert await stage.waiting_in(queue) == 0


async def test_a_restart_during_publishing_loses_nothing_that_was_confirmed(
    private_stage: Stage, node: Node
) -> None:
    publishing, handling = Publishing(private_stage), Handling()
    plugin = private_stage.plugin(handling, OrderPlaced, retry=RETRY)
    await declare_for_good(private_stage, node, plugin)
    everything = asyncio.create_task(publishing.all_events())
    await eventually(lambda: len(publishing.confirmed) > 200)
    await asyncio.to_thread(node.kill)
    before = set(publishing.confirmed)
    assert len(before) < EVENTS
    await asyncio.to_thread(node.start)
    await asyncio.wait_for(everything, COMING_BACK_S)
    assert publishing.failed > 0
    assert publishing.confirmed == ALL
    async with private_stage.working(plugin):
        await check_nothing_is_lost(private_stage, handling)


async def test_a_restart_during_consuming_loses_nothing(private_stage: Stage, node: Node) -> None:
    publishing, handling = Publishing(private_stage), Handling()
    handling.closed_after = 300
    plugin = private_stage.plugin(handling, OrderPlaced, retry=RETRY)
    await declare_for_good(private_stage, node, plugin)
    await publishing.all_events()
    async with private_stage.working(plugin) as worker:
        await eventually(lambda: len(handling.handled) >= 300)
        await node.restart()
        handling.opened.set()
        await check_nothing_is_lost(private_stage, handling)
    assert worker.counts.retried > 0


async def test_restarts_during_both_lose_nothing(private_stage: Stage, node: Node) -> None:
    publishing, handling = Publishing(private_stage), Handling()
    plugin = private_stage.plugin(handling, OrderPlaced, retry=RETRY)
    await declare_for_good(private_stage, node, plugin)
    async with private_stage.working(plugin):
        everything = asyncio.create_task(publishing.all_events())
        await eventually(lambda: len(publishing.confirmed) > 100 and len(handling.handled) > 50)
        await node.restart()
        await asyncio.wait_for(everything, COMING_BACK_S)
        await node.restart()
        await check_nothing_is_lost(private_stage, handling)
    assert publishing.confirmed == ALL


async def test_kills_under_full_load_lose_nothing(private_stage: Stage, node: Node) -> None:
    """Acks that the broker had not written yet are forgotten, and those events come again."""
    handled: Counter[str] = Counter()

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        handled[ctx.envelope.id] += 1

    plugin = private_stage.plugin(charge, OrderPlaced, concurrency=100, prefetch=500)
    await declare_for_good(private_stage, node, plugin)
    ids = [f"m-{number}" for number in range(3 * EVENTS)]
    for start in range(0, len(ids), 500):
        await asyncio.gather(
            *(
                private_stage.publish(OrderPlaced(order_id=id), id=id)
                for id in ids[start : start + 500]
            )
        )
    async with private_stage.working(plugin):
        for part in (1, 2):
            await eventually(partial(has_handled, handled, part * EVENTS))
            await node.restart()
        await eventually(lambda: set(handled) == set(ids), timeout_s=COMING_BACK_S)

        async def settled() -> bool:
            return await private_stage.waiting_in(private_stage.queue("charge")) == 0

        await eventually(settled)
    assert not await private_stage.letters(private_stage.queue("charge"))


def has_handled(handled: Counter[str], count: int) -> bool:
    return len(handled) >= count
