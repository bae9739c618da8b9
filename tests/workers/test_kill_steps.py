"""Kill -9 at each step between a delivery and its ack, and a healthy worker afterwards.

A real process dies at exactly that step: by its own hand, or because the wire before its broker
sees the frame that begins the step, keeps it, and kills. Nothing is lost at any of them. What
happens twice does so only at the steps that admit it: there the broker was not told of work that
was done, or it has both the original and its copy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Literal

import pytest
from pamqp import commands
from pamqp.base import Frame

from tests.waiting import eventually
from tests.wire import Wire, method_in
from tests.workers.mortal_worker import Fate, Wished, make_mortal
from tests.workers.processes import Processes, WorkerProcess
from tests.workers.stage import SOON, Stage, running, until_ready

CONSUMING, PUBLISHING = 1, 2  # a worker's connections, in the order in which it makes them


@dataclass(frozen=True)
class Frames:
    """Such a frame never arrives: the worker dies of the first."""

    said_by: Literal["worker", "broker"]
    connection: int
    method: type[Frame]
    queue: str = ""
    """Of a publish: how the name of the queue goes on that it is for."""

    def have(self, connection: int, method: Frame | None) -> bool:
        if connection != self.connection or not isinstance(method, self.method):
            return False
        return self.queue in str(getattr(method, "routing_key", ""))


def copy_to(queue: str) -> Frames:
    return Frames("worker", PUBLISHING, commands.Basic.Publish, queue)


DELIVERY = Frames("broker", CONSUMING, commands.Basic.Deliver)
ACK = Frames("worker", CONSUMING, commands.Basic.Ack)
NACK = Frames("worker", CONSUMING, commands.Basic.Nack)
CONFIRM = Frames("broker", PUBLISHING, commands.Basic.Ack)


@dataclass(frozen=True)
class Step:
    name: str
    dies_of: Frames | Fate
    wish: Literal["success", "one failure", "a dead letter"] = "success"
    suspect: bool = False
    """Whether the event has come back so often before that it goes into the quarantine."""
    left: int = 1
    """How many messages the broker then has of the event: two are the original and its copy."""
    times: int = 1
    """How often the event ends in all: that many times its work is done, or it is a dead letter."""


ONCE = [
    Step("delivered, not read by the worker", DELIVERY),
    Step("being decoded", "dies decoding"),
    Step("handler running", "dies handling"),
    Step("handler running, alone out of the quarantine", "dies handling", suspect=True),
    Step("retry copy written, not read by the broker", copy_to(".retry."), "one failure"),
    Step("dead-letter copy written, not read by the broker", copy_to(".dlq"), "a dead letter"),
    Step("quarantine copy written, not read by the broker", copy_to(".quarantine"), suspect=True),
]

# Its work is done, and the broker does not know: it can only hand the event out again.
DONE_AND_NOT_TOLD = [
    Step("handler done, not acked", "dies with its work done", times=2),
    Step("ack written, not read by the broker", ACK, times=2),
    Step(
        "handler done, not acked, out of the quarantine",
        "dies with its work done",
        suspect=True,
        times=2,
    ),
]

# The broker has the copy, and the original that was not acked: each goes its own way.
COPIED_AND_NOT_ACKED = [
    Step("retry copy sent, not confirmed", CONFIRM, "one failure", left=2, times=2),
    Step("retry copy confirmed, original not acked", ACK, "one failure", left=2, times=2),
    Step("dead-letter copy sent, not confirmed", CONFIRM, "a dead letter", left=2, times=2),
    Step("dead-letter copy confirmed, original not acked", ACK, "a dead letter", left=2, times=2),
    Step("quarantine copy sent, not confirmed", CONFIRM, suspect=True, left=2, times=2),
    Step("quarantine copy confirmed, original not acked", ACK, suspect=True, left=2, times=2),
]

STEPS = [*ONCE, *DONE_AND_NOT_TOLD, *COPIED_AND_NOT_ACKED]

# On a classic queue what comes back once is a suspect at once: that makes another way for an
# original, and no other for a copy that the broker never read.
WHERE_AN_ORIGINAL_COMES_BACK = [
    step for step in STEPS if not step.suspect and step.dies_of in (DELIVERY, ACK, "dies handling")
]


class Case:
    """Events in one queue, the process that dies of them, and what is left then."""

    def __init__(self, stage: Stage, wire: Wire, folder: Path) -> None:
        self.stage = stage
        self.wire = wire
        self.queue = stage.queue("charge")
        self.priorities: int | None = None
        self.folder = folder

    @property
    def processes(self) -> Processes:
        make = partial(make_mortal, self.queue, priorities=self.priorities)
        return Processes(self.stage, self.folder, make)

    async def publish(self, *events: Wished, suspect: bool = False) -> None:
        await self.stage.declare(self.processes.here())
        for number, event in enumerate(events):
            await self.stage.publish(event, id=f"e-{number}")
        if suspect:
            await self._come_back()
            await self._come_back()

    async def _come_back(self) -> None:
        await eventually(lambda: self.stage.waiting_in(self.queue))
        channel = await self.stage.connection.channel()
        await channel.basic_get(self.queue)
        await channel.basic_reject(1, requeue=True)  # a nack does not count from 4.3 on
        await channel.close()

    def start(self, dies_of: Frames | Fate) -> WorkerProcess:
        if not isinstance(dies_of, Frames):
            mortal = partial(make_mortal, self.queue, priorities=self.priorities, fate=dies_of)
            return self.processes.start(mortal, url=self.wire.url)
        process = self.processes.start(url=self.wire.url)
        self.kill_at(dies_of, process)
        return process

    def kill_at(self, frames: Frames, process: WorkerProcess) -> None:
        def see(said_by: str, connection: int, data: bytes) -> bytes:
            method = method_in(data)
            if isinstance(method, commands.Basic.Publish):
                self.wire.keep(CONSUMING)  # else the copy might come back before the kill
            if said_by == frames.said_by and frames.have(connection, method):
                process.kill()
                self.wire.stall()
            return data

        self.wire.from_client = partial(see, "worker")
        self.wire.from_broker = partial(see, "broker")

    async def check_left(self, so_many: int) -> None:
        """The broker has taken back what the process had, and has so many messages in all."""

        async def counted() -> bool:
            return sum([await self.stage.waiting_in(name) for name in self._queues]) == so_many

        await eventually(counted, f"{so_many} left")

    @property
    def _queues(self) -> list[str]:
        return [
            self.queue,
            *(f"{self.queue}.{end}" for end in (f"retry.{SOON}", "quarantine", "dlq")),
        ]

    async def recover(self, so_many: int) -> tuple[list[str], list[str | None]]:
        """Have a healthy worker until so many are done; returns those, and the dead letters."""

        async def ended() -> bool:
            letters = await self.stage.waiting_in(f"{self.queue}.dlq")
            return letters + len(self.processes.done()) == so_many

        worker = self.stage.worker(self.processes.here())
        async with running(worker):
            await until_ready(worker)
            await eventually(ended, f"{so_many} ended", timeout_s=30)
        letters = [letter.id for letter in await self.stage.letters(self.queue)]
        await self.check_left(len(letters))
        return self.processes.done(), letters


@pytest.fixture
async def case(stage: Stage, broker_url: str, tmp_path: Path) -> AsyncIterator[Case]:
    async with Wire(broker_url).listening() as wire:
        yield Case(stage, wire, tmp_path)


async def check(case: Case, step: Step) -> None:
    await case.publish(Wished(wish=step.wish), suspect=step.suspect)
    assert await case.start(step.dies_of).ended() == -SIGKILL
    case.wire.cut()
    await case.check_left(step.left)
    succeeded, letters = await case.recover(step.times)
    if step.wish == "a dead letter":
        assert (succeeded, letters) == ([], ["e-0"] * step.times)
    else:
        assert (succeeded, letters) == (["e-0"] * step.times, [])


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
async def test_a_worker_killed_at_this_step_loses_nothing(case: Case, step: Step) -> None:
    await check(case, step)


@pytest.mark.parametrize("step", WHERE_AN_ORIGINAL_COMES_BACK, ids=lambda step: step.name)
async def test_nor_does_it_on_a_priority_queue(case: Case, step: Step) -> None:
    case.priorities = 5
    await check(case, step)


async def test_a_worker_killed_while_it_hands_back_loses_and_repeats_nothing(case: Case) -> None:
    await case.publish(Wished(wish="success"), Wished(wish="success"))
    process = case.start("waits")
    case.kill_at(NACK, process)
    delivered: list[Frame] = []

    def note(_connection: int, data: bytes) -> bytes:
        if isinstance(method := method_in(data), commands.Basic.Deliver):
            delivered.append(method)
        return data

    case.wire.from_broker = note
    await eventually(lambda: len(delivered) == 2 and case.processes.done() == ["waiting"])
    process.stop()
    assert await process.ended() == -SIGKILL
    case.wire.cut()
    await case.check_left(2)
    done, letters = await case.recover(3)
    assert (sorted(done), letters) == (["e-0", "e-1", "waiting"], [])
