"""What was removed stays away, however busy the broker was when it was told so."""

from __future__ import annotations

import asyncio

from evworker.broker import Connection, Queue, Topology, apply_topology, count_messages
from evworker.broker import purge_dead_letters as purge
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
