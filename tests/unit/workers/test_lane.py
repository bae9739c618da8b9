"""A lane whose tasks are cancelled by what handlers have left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from evworker.broker import Envelope, Event
from evworker.broker.delivery import Delivery
from evworker.broker.version import BrokerVersion
from evworker.workers import Context, Plugin, plan_topology
from evworker.workers.feed import Feed, Shared
from evworker.workers.lane import Lane
from evworker.workers.outcome import Counts
from evworker.workers.solitude import Solitude
from tests.waiting import eventually


class Paid(Event, topic="paid"):
    amount: int


class Channel:
    """Takes note of how deliveries were settled."""

    is_live = True

    def __init__(self) -> None:
        self.settled: list[str] = []

    def ack_at_once(self, _tag: int) -> bool:
        self.settled.append("acked")
        return True

    async def ack(self, tag: int) -> bool:
        return self.ack_at_once(tag)

    async def hand_back(self, _tag: int) -> bool:
        self.settled.append("handed back")
        return True

    async def reject(self, _tag: int) -> bool:
        raise AssertionError


class Line:
    """A feed of one consumer without a broker; `lane` is its only one."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.channel = Channel()
        self.solitude = Solitude()
        self.may_start = True
        plugin = Plugin("billing")
        plugin.consumer(Paid, queue="q", concurrency=1)(self.handle)
        shared = Shared(
            connection=cast("Any", None),
            publisher=cast("Any", None),
            inbox=None,
            counts=Counts(),
            take=lambda: self.may_start,
            solitude=self.solitude,
        )
        topology = plan_topology([plugin], exchange="e", version=BrokerVersion(4, 0))
        states = {"billing": None}
        self.feed = Feed("q", plugin.consumers, topology=topology, states=states, shared=shared)
        self.lane: Lane = self.feed._lanes[0]  # noqa: SLF001 - its tasks are what this is about
        self.traffic = self.feed._traffic  # noqa: SLF001 - as above

    async def handle(self, event: Paid, ctx: Context) -> None:
        self.handled.append(event.amount)

    def deliver(self) -> None:
        envelope = Envelope.wrap(Paid(amount=1), source="test")
        delivery = Delivery("q", self.channel, 1, False, b"\0\0", bytes(14), envelope.encode())
        self.traffic.begin()
        self.lane.waiting.put((delivery, envelope))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.lane.work())
        try:
            yield task
        finally:
            self.traffic.closing = True
            task.cancel()
            await asyncio.wait([task])


async def settle_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_delivery_that_waits_for_another_that_runs_alone_outlives_a_cancellation() -> None:
    line = Line()
    async with line.working() as task:
        async with line.solitude.alone(patience_s=5):
            line.deliver()
            await settle_turns()
            task.cancel()
            await settle_turns()
            assert line.handled == []
        await eventually(lambda: line.channel.settled == ["acked"])
    assert line.handled == [1]


async def test_a_delivery_that_waits_to_be_handed_back_outlives_a_cancellation() -> None:
    line = Line()
    line.may_start = False
    async with line.working() as task:
        line.deliver()
        await settle_turns()
        task.cancel()
        await settle_turns()
        assert not line.channel.settled
        line.traffic.quiet.set()
        await eventually(lambda: line.channel.settled == ["handed back"])
    assert line.handled == []
