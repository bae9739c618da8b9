"""Channels: what aiormq raises on one, in the words of this floor, and how to be done with one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiormq.exceptions

from evworker.broker.cancellation import is_cancelled
from evworker.broker.errors import BrokerError

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

RPC_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 2.0

_CHANNEL_ERRORS = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
    RuntimeError,
    OSError,
)


def is_channel_error(error: BaseException) -> bool:
    """Whether aiormq raised it because a channel or its connection is gone, refused or too slow.

    When the broker's end of a socket closes without a word, aiormq ends what waits on it with a
    bare Exception, or with a CancelledError that nobody has asked for.
    """
    if isinstance(error, asyncio.CancelledError):
        return not is_cancelled()
    return isinstance(error, _CHANNEL_ERRORS) or type(error) is Exception


@contextmanager
def broker_errors(what: str) -> Iterator[None]:
    """Turn whatever aiormq raises inside into a BrokerError: "can't <what>: <why>"."""
    try:
        yield
    except BaseException as error:
        if not is_channel_error(error):
            raise
        raise BrokerError(f"can't {what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The error's text, or what stands for it where it has none."""
    if isinstance(error, asyncio.CancelledError) or type(error) is Exception:
        return "the connection was lost"
    return str(error) or type(error).__name__


async def written(channel: AbstractChannel, writing: Awaitable[None]) -> None:
    """Await a write that has no answer, for as long as its channel lives; raises what it raises.

    aiormq hands its frames to the connection's writer through a queue of ten, and waits for room in
    it. Once the writer has ended with its connection, that would be for ever.
    """
    if not channel.connection.write_queue.full():
        await writing
        return
    task = asyncio.ensure_future(writing)
    try:
        await asyncio.wait([task, channel.closing], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise aiormq.exceptions.ChannelInvalidStateError(f"{channel} is closed")
        await task
    finally:
        task.cancel()


async def close_channel(channel: AbstractChannel) -> None:
    """Close it, after what was sent on it; a broker that does not answer is left alone."""
    if channel.is_closed:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await channel.close()
    except BaseException as error:
        if not is_channel_error(error):
            raise
