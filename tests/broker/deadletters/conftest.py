"""A work queue that takes orders, and its dead-letter queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evworker.broker import Connection, Publisher, Queue, apply_topology, dead_letter_queue
from evworker.broker.topology import queue_topology
from tests.conftest import Cleanup

LIMIT = 3


@pytest.fixture
async def queue(
    connection: Connection, publisher: Publisher, cleanup: Cleanup, exchange: str
) -> str:
    """It gives up on a message after LIMIT returns."""
    name = cleanup.queue(f"{exchange}.charge", family=True)
    topology = queue_topology(
        name,
        exchange=exchange,
        patterns=["orders.*"],
        delays_s=[],
        priorities=None,
        version=connection.version,
    )
    for one in topology.queues:
        cleanup.queue(one.name)
    impatient = tuple(
        Queue(one.name, {**one.arguments, "x-delivery-limit": LIMIT}) if one.name == name else one
        for one in topology.queues
    )
    await apply_topology(connection, replace(topology, queues=impatient))
    return name


@pytest.fixture
def letters(queue: str) -> str:
    return dead_letter_queue(queue)
