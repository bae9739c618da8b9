"""A dependency that is down: the queue pauses, and no message pays for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from evworker.workers import Context, KillSwitch, Retry
from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, OutOfLuckError, Stage

EVENTS = 200
QUICK = KillSwitch(ConnectionError, failures=5, pause="100ms")


@dataclass
class Database:
    """What the handler depends on."""

    up: bool = False
    tried: int = 0
    stored: list[str] = field(default_factory=list)

    async def store(self, event: OrderPlaced, ctx: Context) -> None:
        self.tried += 1
        if not self.up:
            raise ConnectionRefusedError("the database is down")
        self.stored.append(event.order_id)


async def test_a_dependency_that_is_down_costs_no_message(stage: Stage) -> None:
    database = Database()
    plugin = stage.plugin(database.store, OrderPlaced, retry=Retry("100ms"), kill_switch=QUICK)
    queue = plugin.consumers[0].queue
    async with stage.working(plugin) as worker:
        for number in range(EVENTS):
            await stage.publish(OrderPlaced(order_id=str(number)))
        # Long enough for each of them to have used up its attempts many times over.
        await eventually(lambda: database.tried > 40, "probes, one at a time", timeout_s=30)
        assert worker.counts.handled == 0
        assert await stage.waiting_in(f"{queue}.dlq") == 0
        database.up = True
        await eventually(lambda: len(set(database.stored)) == EVENTS, "all stored", timeout_s=30)
    assert sorted(database.stored, key=int) == [str(number) for number in range(EVENTS)]
    assert await stage.letters(queue) == []
    assert worker.counts.retried < EVENTS / 4


async def test_other_errors_open_nothing(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, kill_switch=QUICK)
    await stage.declare(plugin)
    for number in range(20):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 20}


async def test_a_stop_while_it_pauses_loses_nothing(stage: Stage) -> None:
    database = Database()
    plugin = stage.plugin(database.store, OrderPlaced, kill_switch=QUICK)
    async with stage.working(plugin) as worker:
        for number in range(50):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: database.tried > 10, "the switch to open and to probe")
        worker.stop()
    database.up = True
    await stage.work(plugin)
    lost_to_first_failures = len(await stage.letters(plugin.consumers[0].queue))
    assert lost_to_first_failures <= QUICK.failures
    assert len(set(database.stored)) + lost_to_first_failures == 50
