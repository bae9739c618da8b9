"""One claim on its way to the broker: what may go side by side, and what has to wait its turn.

::

    claimed ──► confirmed     the broker has it
            ├─► refused       the broker will not have it: this row waits, and its key with it
            ├─► overdue       no confirm in time
            └─► left          not sent, or cut off: the row is not to blame, and goes again

The rows of a key go one after the other, each once the one before is confirmed: were they sent
together and the first refused, the second would have overtaken it. Rows without a key, and keys
among themselves, go side by side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from evworker.broker.cancellation import cancel_all
from evworker.broker.envelope import UNKNOWN_SOURCE, Envelope
from evworker.broker.errors import (
    BrokerRefusedError,
    ConnectionLostError,
    EventError,
    PublishError,
    PublishTimeoutError,
    TopologyMismatchError,
    UndecodableError,
)
from evworker.broker.outbox.row import decoded_headers
from evworker.broker.outbox.store import ClaimedRow
from evworker.broker.properties import message_properties

if TYPE_CHECKING:
    from aiormq import spec

    from evworker.broker.publisher import Publisher

LANES = 200


class Batch:
    """The rows of one claim, and what has become of each."""

    def __init__(
        self,
        rows: Sequence[ClaimedRow],
        publisher: Publisher,
        *,
        until: float,
        finished: Callable[[int], object],
    ) -> None:
        """Nothing is sent after `until`, by `time.monotonic()`.

        `finished` is told how many rows more are on their way no longer.
        """
        self.confirmed: list[int] = []
        self.refused: list[tuple[ClaimedRow, Exception]] = []
        self.overdue: list[tuple[ClaimedRow, Exception]] = []
        self.left: list[ClaimedRow] = []
        self.lost: ConnectionLostError | None = None
        """Why nothing more was sent, if the connection was lost."""
        self.fatal: Exception | None = None
        """Why nothing will ever be sent, if the broker has said so."""
        self._publisher = publisher
        self._until = until
        self._finished = finished
        self._is_stopped = False
        self._chains = iter(_chains(rows))
        self._lanes: set[asyncio.Task[None]] = set()
        self._size = len(rows)

    def stop(self) -> None:
        """Send nothing more; what was sent may still be confirmed."""
        self._is_stopped = True

    async def publish(self, *, step_s: float) -> bool:
        """Go on for `step_s` seconds at most; returns whether every row has come to an end."""
        if not self._lanes:
            lanes = min(LANES, self._size)
            self._lanes = {asyncio.create_task(self._lane()) for _ in range(lanes)}
        _, pending = await asyncio.wait(self._lanes, timeout=step_s)
        if not pending:
            for lane in self._lanes:
                lane.result()
        return not pending

    async def abandon(self) -> None:
        """Wait for no more confirms; rows without one are in none of the lists."""
        self.stop()
        await cancel_all(*self._lanes)

    async def _lane(self) -> None:
        for chain in self._chains:
            await self._send_in_order(chain)

    async def _send_in_order(self, chain: list[ClaimedRow]) -> None:
        for position, row in enumerate(chain):
            if self._is_stopped or self.fatal or self.lost or time.monotonic() >= self._until:
                self._leave(chain[position:])
                return
            is_confirmed = await self._send(row)
            self._finished(1)
            if not is_confirmed:
                self._leave(chain[position + 1 :])
                return

    def _leave(self, rows: list[ClaimedRow]) -> None:
        self.left += rows
        self._finished(len(rows))

    async def _send(self, row: ClaimedRow) -> bool:
        timeout_s = self._publisher.timeout_s
        lease_s = self._until - time.monotonic()
        try:
            await self._publisher.send(
                row.body,
                _properties_of(row),
                exchange=self._publisher.exchange,
                routing_key=row.topic,
                timeout_s=min(timeout_s, lease_s),
            )
        except PublishTimeoutError as error:
            if lease_s < timeout_s:
                self.left.append(row)
            else:
                self.overdue.append((row, error))
        except ConnectionLostError as error:
            self.lost = error
            self.left.append(row)
        except (BrokerRefusedError, TopologyMismatchError) as error:
            self.fatal = error
            self.left.append(row)
        except (PublishError, EventError) as error:
            self.refused.append((row, error))
        else:
            self.confirmed.append(row.seq)
            return True
        return False


def _chains(rows: Sequence[ClaimedRow]) -> list[list[ClaimedRow]]:
    chains: list[list[ClaimedRow]] = []
    of_key: dict[str, list[ClaimedRow]] = {}
    for row in rows:
        chain = None if row.key is None else of_key.get(row.key)
        if chain is not None:
            chain.append(row)
            continue
        chains.append([row])
        if row.key is not None:
            of_key[row.key] = chains[-1]
    return chains


class _Attributes(msgspec.Struct):
    """What the properties repeat of a body; the event itself is passed over."""

    source: str = UNKNOWN_SOURCE
    time: datetime | None = None
    correlationid: str | None = None
    traceparent: str | None = None


_attributes = msgspec.json.Decoder(_Attributes)


def _properties_of(row: ClaimedRow) -> spec.Basic.Properties:
    """Raises HeadersError or UndecodableError for a row that `Outbox.add` has not written."""
    try:
        attributes = _attributes.decode(row.body)
        headers = decoded_headers(row.headers)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableError(
            f"{row.topic} {row.event_id}: the row is damaged: {error}"
        ) from error
    envelope = Envelope(
        id=row.event_id,
        source=attributes.source,
        topic=row.topic,
        time=attributes.time or datetime.now(UTC),
        data=b"",
        key=row.key,
        correlation_id=attributes.correlationid,
        traceparent=attributes.traceparent,
    )
    return message_properties(envelope, row.priority, headers)
