"""The quarantine: runs messages that may kill their worker, one at a time in the whole process.

A message that has come back unsettled twice may be what killed its workers, or may only have been
near it: all that was prefetched comes back. So it is moved to a quorum queue of its own kind, and
taken from there one by one, while nothing else runs in the process. Whatever dies then, only this
message was there, and the queue has counted it, on every version and whatever the kind of the work
queue. A lost connection counts there too; who lives through it knows better, and forgives.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import aiormq.exceptions
import structlog

from evworker.broker import BrokerError
from evworker.broker.backoff import backoff_s
from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel
from evworker.broker.delivery import Delivery
from evworker.broker.intake import take_one

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker import Connection
    from evworker.workers.solitude import Solitude

log = structlog.get_logger("evworker.quarantine")

SUSPECT_RETURNS = 2
"""Once is no suspicion: a graceful stop hands back what waits, which counts before 4.3."""

_POLL_S = 1.0

_BLIND_LOOKS = 30
"""Where it can't be seen whether there is anything, the others are only made to wait so seldom."""

_PATIENCE_S = 10.0
_LONGEST_PATIENCE_S = 600.0
"""How long the others of a worker may be made to wait for handlers that take long to end."""


def is_suspect(delivery: Delivery, *, counted: bool) -> bool:
    """Whether the message has come back so often that it should run alone.

    `counted` says whether its queue counts. If not, a count on it is of another queue, where it was
    before someone moved it.
    """
    returns = delivery.returns if counted else None
    if returns is None:
        return delivery.redelivered
    return returns >= SUSPECT_RETURNS


def would_be_suspect(delivery: Delivery, *, counted: bool) -> bool:
    """Whether handing it back now would make it one."""
    return not counted or (delivery.returns or 0) + 1 >= SUSPECT_RETURNS


class Quarantine:
    """Takes from one quarantine queue."""

    def __init__(
        self,
        queue: str,
        *,
        connection: Connection,
        solitude: Solitude,
        stop_asked: asyncio.Event,
        ready: Callable[[], Awaitable[None]],
        attempt: Callable[[Delivery, int], Awaitable[None]],
    ) -> None:
        """`attempt` is given each message, and how often it has killed its worker.

        `ready` is awaited before: it waits while a kill switch is open.
        """
        self.queue = queue
        self._connection = connection
        self._solitude = solitude
        self._stop_asked = stop_asked
        self._ready = ready
        self._attempt = attempt
        self._channel: AbstractChannel | None = None
        self._blind_looks = 0
        self._survived: Counter[str] = Counter()

    async def run(self) -> None:
        """Take and attempt, until the worker is told to stop."""
        failures = crowded = 0
        while not self._stop_asked.is_set():
            await self._ready()
            found, patience_s = False, min(_PATIENCE_S * 2**crowded, _LONGEST_PATIENCE_S)
            try:
                # Before it is taken: a crash counts for whatever is.
                if await self._holds_any():
                    async with self._solitude.alone(patience_s=patience_s):
                        found = await self._run_first()
                failures = crowded = 0
            except TimeoutError:
                crowded += 1
                log.warning(
                    "waits for running handlers to end, to run a message alone", queue=self.queue
                )
                await self._pause(patience_s)
            except BrokerError as error:
                failures += 1
                log.debug("quarantine not reached", queue=self.queue, error=str(error))
            if not found:
                await self._pause(backoff_s(failures, first_s=_POLL_S) if failures else _POLL_S)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop_asked.wait()

    async def close(self) -> None:
        """Give back what is not settled."""
        if self._channel is not None:
            await close_channel(self._channel)

    async def _holds_any(self) -> bool:
        """Whether there is something to run, so that nobody is made to wait for nothing."""
        channel = await self._open_channel()
        try:
            with broker_errors(f"look at queue {self.queue!r}"):
                declared = await channel.queue_declare(
                    self.queue, passive=True, timeout=RPC_TIMEOUT_S
                )
        except BrokerError as error:
            if not isinstance(error.__cause__, aiormq.exceptions.ChannelAccessRefused):
                raise
            # 4.2.6 and 4.3.0 let nobody look who may not configure.
            self._blind_looks += 1
            return self._blind_looks % _BLIND_LOOKS == 0
        return bool(declared.message_count)

    async def _open_channel(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel()
        return self._channel

    async def _run_first(self) -> bool:
        if self._stop_asked.is_set():
            return False
        delivery = await take_one(await self._open_channel(), self.queue)
        if delivery is None:
            return False
        message = str(delivery.properties.message_id)
        await self._attempt(delivery, (delivery.returns or 0) - self._survived[message])
        if delivery.is_live:
            del self._survived[message]
        else:
            self._survived[message] += 1  # it was the connection that died, and not its worker
        return True
