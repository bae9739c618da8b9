"""How much is in a queue, as far as its broker can be believed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import aiormq.exceptions

from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker.connection import Connection

# A quorum queue that has not answered its broker within 250 ms is told to be empty. So an empty one
# is believed that was told sooner, or again and again.
_SURELY_ASKED_S = 0.2
_MOST_DOUBTS = 5


class Look(NamedTuple):
    """What a queue holds right now."""

    ready: int
    """How many messages wait; those that are held by somebody are not counted."""
    subscriptions: int
    """On quorum queues these count until all that they brought is acked or back."""


async def look_at(channel: AbstractChannel, queue: str) -> Look:
    """Ask the broker about a queue; raises what aiormq raises."""
    loop = asyncio.get_running_loop()
    for _ in range(_MOST_DOUBTS):
        asked_at = loop.time()
        told = await channel.queue_declare(queue, passive=True, timeout=RPC_TIMEOUT_S)
        look = Look(told.message_count or 0, told.consumer_count or 0)
        if any(look) or loop.time() - asked_at < _SURELY_ASKED_S:
            break
    return look


async def count_messages(connection: Connection, queue: str) -> int | None:
    """How many messages are ready in the queue; None when there is no such queue."""
    with broker_errors(f"look at queue {queue!r}"):
        channel = await connection.channel()
        try:
            return (await look_at(channel, queue)).ready
        except aiormq.exceptions.ChannelNotFoundEntity:
            return None
        finally:
            await close_channel(channel)
