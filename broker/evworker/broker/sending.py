"""The way out for every message: on the tap where there is one, by aiormq's own means where not.

::

    send ──► the tap is ready ─────────────────────► frames, gathered ──► confirm
      │      no channel, or the other end is slow ─► waits, and then the same
      └────► no tap, or a body of a MiB or more ───► aiormq

A body over the broker's own limit closes its channel and fails everything in flight there. One that
might be goes alone, on a channel of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import get_ident
from typing import TYPE_CHECKING
from weakref import WeakSet

from evworker.broker.channels import close_channel, is_channel_error
from evworker.broker.declare import apply_topology
from evworker.broker.errors import (
    BrokerError,
    BrokerRefusedError,
    ConnectionLostError,
    EvworkerError,
    PublishError,
    TopologyMismatchError,
)
from evworker.broker.fastlane.publishing import TappedPublishing
from evworker.broker.topology import events_topology
from evworker.broker.unconfirmed import NOT_ENCODABLE, explained, timed_out

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker.connection import Connection
    from evworker.broker.fastlane.confirms import Confirm
    from evworker.broker.message import Message

_ALONE_FROM_BYTES = 1024 * 1024
_ALONE_AT_ONCE = 8


class Sending:
    """The channels that a publisher sends on; the shared one is opened anew when it has died."""

    def __init__(self, connection: Connection, exchange: str) -> None:
        self.channel: AbstractChannel | None = None
        self._connection = connection
        self._exchange = exchange
        self._lane: TappedPublishing | None = None
        self._opening = asyncio.Lock()
        self._in_flight: dict[str, asyncio.Event] = {}
        self._alone = asyncio.Semaphore(_ALONE_AT_ONCE)
        self._closing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that publishes, in this thread: no other loop can run there meanwhile."""
        self._thread = 0
        self._is_closed = False
        _in_this_process.add(self)

    async def open(self) -> None:
        """Declare the exchange and open the shared channel, unless that is done."""
        self._is_closed = False
        await self._shared_channel()

    def close(self) -> AbstractChannel | None:
        """Send nothing more until `open`; returns the shared channel, to be closed."""
        self._is_closed, self._loop = True, None
        return self._forget()

    async def closed(self) -> None:
        """Wait until the channels of large messages are closed."""
        await asyncio.gather(*self._closing)

    async def send(self, message: Message, timeout_s: float) -> None:
        """Send a message and await its confirm. Raises as `Publisher.send` does."""
        confirm = self.begin_now(message, timeout_s) or await self._begin_late(message, timeout_s)
        if confirm is None:
            await self._send_by_library(message, timeout_s)
            return
        failure = await confirm
        if failure is not None:
            raise self.explained(failure, message, timeout_s) from failure

    def begin_now(self, message: Message, timeout_s: float) -> Confirm | None:
        """Send a message behind all that were begun before; None, and not sent, if that can't be.

        The confirm is for `explained`. Raises HeadersError, or PublishError from another event loop
        than before, with nothing sent.
        """
        # To ask for the running loop is a system call in Python 3.11.
        if get_ident() != self._thread or self._loop is None or not self._loop.is_running():
            self._belong_here(message)
        lane = self._lane
        if lane is None or not lane.is_ready or len(message.body) >= _ALONE_FROM_BYTES:
            return None
        try:
            return lane.publish(message, timeout_s)
        except NOT_ENCODABLE as error:
            raise self.explained(error, message, timeout_s) from error

    async def begin_in_order(self, message: Message, timeout_s: float) -> Confirm:
        """The same, which waits until it can be. Raises as `send` does, with nothing sent."""
        confirm = await self._begin_late(message, timeout_s)
        return confirm or asyncio.ensure_future(self._outcome(message, timeout_s))

    def begin(self, message: Message, timeout_s: float) -> Confirm:
        """The same, which leaves the wait to a task, and so may be overtaken."""
        confirm = self.begin_now(message, timeout_s)
        return confirm or asyncio.ensure_future(self._outcome(message, timeout_s))

    def explained(
        self, failure: BaseException, message: Message, timeout_s: float
    ) -> EvworkerError:
        """Why there was no confirm, as an error of this floor."""
        if isinstance(failure, EvworkerError):
            return failure
        if isinstance(failure, TimeoutError):
            return timed_out(message, timeout_s, self._connection, has_channel=True, sent=True)
        return explained(failure, message)

    def _belong_here(self, message: Message) -> None:
        if self._loop not in (None, asyncio.get_running_loop()):
            raise PublishError(
                f"{message.routing_key} {message.id}: not sent, this publisher belongs to another "
                "event loop; hand the publish over with asyncio.run_coroutine_threadsafe, or open "
                "a publisher in this loop"
            )
        if not self._is_closed:
            self._settle_here()

    def _settle_here(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), get_ident()

    async def _begin_late(self, message: Message, timeout_s: float) -> Confirm | None:
        """Begin once there is a channel that takes it; None if that is for the library to do."""
        if len(message.body) >= _ALONE_FROM_BYTES:
            return None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with self._explaining(message, timeout_s) as attempt:
            async with asyncio.timeout_at(deadline):
                lane = None
                while lane is None:
                    attempt.has_channel = False
                    await self._shared_channel()
                    attempt.has_channel = True
                    if self._lane is None:
                        return None
                    lane = self._lane if await self._lane.ready() else None
            return lane.publish(message, deadline - loop.time())

    async def _outcome(self, message: Message, timeout_s: float) -> BaseException | None:
        try:
            await self.send(message, timeout_s)
        except EvworkerError as error:
            return error
        return None

    async def _send_by_library(self, message: Message, timeout_s: float) -> None:
        exchange, routing_key, mandatory = message.route
        async with (
            self._explaining(message, timeout_s) as attempt,
            asyncio.timeout(timeout_s),
            self._channel_for(message) as channel,
        ):
            attempt.has_channel = attempt.is_sent = True
            await channel.basic_publish(
                message.body,
                exchange=exchange,
                routing_key=routing_key,
                properties=message.properties,
                mandatory=mandatory,
            )

    @asynccontextmanager
    async def _explaining(self, message: Message, timeout_s: float) -> AsyncIterator[_Attempt]:
        attempt = _Attempt()
        try:
            yield attempt
        except TimeoutError as error:
            raise timed_out(
                message,
                timeout_s,
                self._connection,
                has_channel=attempt.has_channel,
                sent=attempt.is_sent,
            ) from error
        except (PublishError, BrokerRefusedError, TopologyMismatchError):
            raise
        except BrokerError as error:
            raise ConnectionLostError(
                f"{message.routing_key} {message.id}: not sent, {error}"
            ) from error
        except BaseException as error:
            if not is_channel_error(error) and not isinstance(error, NOT_ENCODABLE):
                raise
            raise self.explained(error, message, timeout_s) from error

    # Channels

    @asynccontextmanager
    async def _channel_for(self, message: Message) -> AsyncIterator[AbstractChannel]:
        if len(message.body) < _ALONE_FROM_BYTES:
            async with self._one_in_flight(str(message.id)):
                yield await self._shared_channel()
            return
        async with self._alone:
            channel = await self._new_channel()
            try:
                yield channel
            finally:
                # Not awaited: the deadline of this publish may be over.
                closing = asyncio.create_task(close_channel(channel))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    @asynccontextmanager
    async def _one_in_flight(self, message_id: str) -> AsyncIterator[None]:
        # aiormq matches a returned message to its publish by message id alone: two at once with
        # one id would swap their results.
        while (other := self._in_flight.get(message_id)) is not None:
            await other.wait()
        mine = self._in_flight[message_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._in_flight[message_id]
            mine.set()

    async def _shared_channel(self) -> AbstractChannel:
        while True:
            self._raise_if_closed()
            lane = self._lane
            if lane is not None and not lane.is_live:
                await lane.ended()  # which is seen coming before aiormq has heard of it
            if self.channel is not None and not self.channel.is_closed:
                return self.channel
            async with self._opening:
                if self.channel is None or self.channel.is_closed:
                    await self._open_channel()

    async def _open_channel(self) -> None:
        self._forget()
        self._settle_here()
        await apply_topology(self._connection, events_topology(self._exchange))
        channel = await self._new_channel()
        tap = self._connection.tap_of(channel)
        self._lane = None if tap is None else TappedPublishing(tap, channel)
        self.channel = channel

    async def _new_channel(self) -> AbstractChannel:
        self._raise_if_closed()
        channel = await self._connection.channel(confirms=True)
        if self._is_closed:
            await close_channel(channel)
        self._raise_if_closed()
        return channel

    def _forget(self) -> AbstractChannel | None:
        channel, self.channel, self._lane = self.channel, None, None
        return channel

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise BrokerError("the publisher is closed; open it again first")


_in_this_process: WeakSet[Sending] = WeakSet()


def _disown() -> None:
    """A fork's copy of a loop seems to run; nothing may be written into the parent's connection."""
    for sending in _in_this_process:
        sending._thread = 0  # noqa: SLF001 - this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


class _Attempt:
    """One publish by way of the library, or one that has to wait."""

    has_channel = False
    is_sent = False
    """Whether the broker can have it."""
