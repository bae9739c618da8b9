"""What was removed stays away, however busy the broker was when it was told so."""

from __future__ import annotations

import asyncio

import pytest

from evworker.broker import Connection, Queue, Topology, apply_topology, count_messages
from evworker.broker import purge_dead_letters as purge
from evworker.broker.embedded import EmbeddedBroker
from tests.broker.deadletters.letters import order, put
from tests.conftest import Cleanup

QUEUES = 8
OF_EACH = 1_000


async def test_acks_that_a_busy_queue_has_not_taken_yet_are_waited_for(
    connection: Connection, unique: str, cleanup: Cleanup
) -> None:
    """A channel that closes before forgets them, and its letters come back."""
    names = [cleanup.queue(f"{unique}.{number}.dlq") for number in range(QUEUES)]
    arguments: dict[str, str | int] = {"x-queue-type": "quorum", "x-delivery-limit": 10_000}
    await apply_topology(
        connection, Topology(queues=tuple(Queue(name, arguments) for name in names))
    )
    await asyncio.gather(*(put(connection, name, map(order, range(OF_EACH))) for name in names))
    purged = await asyncio.gather(*(purge(connection, name) for name in names))
    assert purged == [OF_EACH] * QUEUES
    assert [await count_messages(connection, name) for name in names] == [0] * QUEUES


async def test_a_broker_that_answers_late_is_waited_for(
    embedded: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is given up costs its channel, and all that is held on it."""
    monkeypatch.setattr("evworker.broker.deadletters.taking.SETTLE_TIMEOUT_S", 0.01)
    async with Connection(embedded.url, name="test") as connection:
        await apply_topology(connection, Topology(queues=(Queue("q.dlq", {}),)))
        await put(connection, "q.dlq", map(order, range(3)))
        embedded.faults.slow_down(0.05)
        assert await purge(connection, "q.dlq") == 3
        assert await count_messages(connection, "q.dlq") == 0
