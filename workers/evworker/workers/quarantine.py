"""The quarantine: runs messages that may kill their worker, one at a time in the whole process.

A message that has come back unsettled twice may be what killed its workers, or may only have been
near it: all that was prefetched comes back. So it is moved to a quorum queue of its own kind, and
taken from there one by one. Whatever dies then, only this message was there, and the queue has
counted it, on every version and whatever the kind of the work queue. A lost connection counts there
too; who lives through it knows better, and forgives.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from evworker.broker import BrokerError
from evworker.broker.backoff import backoff_s
from evworker.broker.channels import close_channel
from evworker.broker.intake import Delivery, take_one

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker import Connection

log = structlog.get_logger("evworker.quarantine")

SUSPECT_RETURNS = 2
"""Once is no suspicion: a graceful stop hands back what waits, which counts before 4.3."""

_POLL_S = 1.0


def is_suspect(delivery: Delivery) -> bool:
    """Whether the message has come back so often that it should run alone."""
    returns = delivery.returns
    return returns is None or returns >= SUSPECT_RETURNS


class Quarantine:
    """Takes from one quarantine queue. `alone` is shared by all of a worker's."""

    def __init__(
        self,
        queue: str,
        *,
        connection: Connection,
        alone: asyncio.Lock,
        stop_asked: asyncio.Event,
        attempt: Callable[[Delivery, int], Awaitable[None]],
    ) -> None:
        """`attempt` is given each message, and how often it has killed its worker."""
        self.queue = queue
        self._connection = connection
        self._alone = alone
        self._stop_asked = stop_asked
        self._attempt = attempt
        self._channel: AbstractChannel | None = None
        self._survived: Counter[str] = Counter()

    async def run(self) -> None:
        """Take and attempt, until the worker is told to stop."""
        failures = 0
        while not self._stop_asked.is_set():
            try:
                # Only the one that is about to run may be taken: a crash counts for all that are.
                async with self._alone:
                    found = await self._run_first()
                failures = 0
            except BrokerError as error:
                failures += 1
                found = False
                log.debug("quarantine not reached", queue=self.queue, error=str(error))
            if not found:
                await asyncio.sleep(backoff_s(failures, first_s=_POLL_S) if failures else _POLL_S)

    async def close(self) -> None:
        """Give back what is not settled."""
        if self._channel is not None:
            await close_channel(self._channel)

    async def _run_first(self) -> bool:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel()
        delivery = await take_one(self._channel, self.queue)
        if delivery is None:
            return False
        message = str(delivery.properties.message_id)
        await self._attempt(delivery, (delivery.returns or 0) - self._survived[message])
        if delivery.is_live:
            del self._survived[message]
        else:
            self._survived[message] += 1  # it was the connection that died, and not its worker
        return True
