"""`evworker dlq replay` and `edit`, killed at each of their steps: nothing is ever lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest
from pamqp import commands
from pamqp.base import Frame

from evworker.broker import count_messages
from tests.broker.deadletters.letters import all_in, ids_in, order, put
from tests.cli.command import Command
from tests.cli.conftest import Exchange
from tests.waiting import eventually
from tests.wire import Wire, method_in

pytestmark = pytest.mark.every_broker

# Of what one subscription holds when it dies, a quorum queue keeps up to 32 in order.
LETTERS = 30
IDS = [f"id-{number}" for number in range(LETTERS)]


@dataclass(frozen=True)
class Step:
    """The moment before the broker, or the command, hears of a frame."""

    name: str
    frame: type[Frame]
    number: int = 1
    said_by_broker: bool = False
    is_partly: bool = False
    """Whether the broker has removed some of the letters by then."""
    published: bool = False
    """Whether a copy is at work by then."""


STEPS = [
    Step("before-anything-is-taken", commands.Basic.Consume),
    Step("taken-and-not-published", commands.Basic.Publish),
    Step("published-and-not-confirmed", commands.Basic.Ack, said_by_broker=True, published=True),
    Step("confirmed-and-not-acked", commands.Basic.Ack, published=True),
]
PARTLY = Step("acked-partly", commands.Basic.Ack, 2, is_partly=True, published=True)


async def kill_at(
    step: Step, evworker: Command, broker_url: str, *arguments: str, connection: int = 1
) -> int:
    """Run the command, and kill -9 it when its connection of that number has come to the step.

    Returns how many letters it has had removed by then.
    """
    removed: set[int] = set()
    async with Wire(broker_url).listening() as wire:
        reached = asyncio.Event()
        seen = 0

        def watch(number: int, data: bytes) -> bytes:
            nonlocal seen
            if number == connection and isinstance(method_in(data), step.frame):
                seen += 1
                if seen == step.number:
                    wire.stall()
                    reached.set()
            ack = method_in(data)
            if isinstance(ack, commands.Basic.Ack) and not reached.is_set():
                tag = ack.delivery_tag
                removed.update(range(1, tag + 1) if ack.multiple else [tag])
            return data

        if step.said_by_broker:
            wire.from_broker = watch
        else:
            wire.from_client = watch
        url = {"EVWORKER_BROKER_URL": wire.url}
        async with evworker.started("dlq", *arguments, env=url) as process:
            async with asyncio.timeout(30):
                await reached.wait()
            assert process.returncode is None
            process.kill()
            assert await process.wait() == -9
        wire.cut()
    return len(removed)


@pytest.mark.parametrize("step", [*STEPS, PARTLY], ids=lambda step: step.name)
async def test_a_killed_replay_loses_nothing_and_is_simply_run_again(
    step: Step, evworker: Command, broker_url: str, exchange: Exchange, charge: str
) -> None:
    connection, letters = exchange.connection, f"{charge}.dlq"
    await put(connection, letters, map(order, range(LETTERS)))
    slowly = ("--rate", "100") if step.is_partly else ()  # else one ack would do for all
    removed = await kill_at(step, evworker, broker_url, "replay", charge, *slowly)
    assert step.is_partly == bool(removed)

    async def back() -> bool:
        return await count_messages(connection, letters) == LETTERS - removed

    await eventually(back)
    left, there = await ids_in(connection, letters), await ids_in(connection, charge)
    # Confirms, and with them acks, need not come in the order of the publishes.
    assert left == [id for id in IDS if id in set(left)]
    assert bool(there) == step.published
    assert {*left, *there} == set(IDS)
    assert there == IDS[: len(there)]

    again = await evworker("dlq", "replay", charge)
    assert again.code == 0, again.err
    assert await count_messages(connection, letters) == 0
    copies = await ids_in(connection, charge)
    assert list(dict.fromkeys(copies)) == IDS
    # Twice there are those alone that the broker had and that were not removed yet.
    twice = {id for id, number in Counter(copies).items() if number > 1}
    assert set(there) & set(left) <= twice <= set(left)
    assert len(copies) == LETTERS + len(twice)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
async def test_a_killed_edit_loses_nothing_and_is_simply_run_again(
    step: Step, evworker: Command, broker_url: str, exchange: Exchange, charge: str
) -> None:
    connection, letters = exchange.connection, f"{charge}.dlq"
    await put(connection, letters, map(order, range(3)))
    edit = ("edit", charge, "id-1", "--set", "total=7")
    await kill_at(step, evworker, broker_url, *edit, connection=2)  # the first has found the letter

    async def back() -> bool:
        return await count_messages(connection, letters) == 3

    await eventually(back)
    assert await ids_in(connection, letters) == ["id-0", "id-1", "id-2"]
    assert await count_messages(connection, charge) == step.published

    again = await evworker("dlq", *edit)
    assert again.code == 0, again.err
    assert await ids_in(connection, letters) == ["id-0", "id-2"]
    copies = await all_in(connection, charge)
    assert [copy.edit_of for copy in copies] == ["id-1"] * (1 + step.published)
    assert len({copy.id for copy in copies}) == len(copies)
