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
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

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
from evworker.broker.message import event_message
from evworker.broker.outbox.row import decoded_headers
from evworker.broker.outbox.store import ClaimedRow

if TYPE_CHECKING:
    from evworker.broker.fastlane.confirms import Confirm
    from evworker.broker.message import Message
    from evworker.broker.publisher import Publisher

AT_ONCE = 200
"""How many rows of one claim are on their way at once."""


class _Sent(NamedTuple):
    """A row that is on its way, and those of its key that wait for it."""

    row: ClaimedRow
    chain: Iterator[ClaimedRow]
    timeout_s: float
    is_cut_short: bool
    """Whether its deadline is that of the lease."""


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
        self._chains = map(iter, _chains(rows))
        self._sent: set[Confirm] = set()
        self._over: asyncio.Future[None] | None = None

    def stop(self) -> None:
        """Send nothing more; what was sent may still be confirmed."""
        self._is_stopped = True

    async def publish(self, *, step_s: float) -> bool:
        """Go on for `step_s` seconds at most; returns whether every row has come to an end."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
            self._go_on()
        await asyncio.wait((self._over,), timeout=step_s)
        if self._over.done():
            self._over.result()
        return self._over.done()

    async def abandon(self) -> None:
        """Wait for no more confirms; rows without one are in none of the lists."""
        self.stop()
        sent, self._sent = self._sent, set()
        await cancel_all(*sent)

    def _go_on(self) -> None:
        """Begin as many chains as may be on their way."""
        while len(self._sent) < AT_ONCE and (chain := next(self._chains, None)) is not None:
            self._send_next(chain)
        if not self._sent:
            self._end()

    def _send_next(self, chain: Iterator[ClaimedRow]) -> None:
        row = next(chain, None)
        if row is None:
            return
        timeout_s, lease_s = self._publisher.timeout_s, self._until - time.monotonic()
        if self._is_stopped or self.fatal or self.lost or lease_s <= 0:
            self._leave([row, *chain])
            return
        sent = _Sent(row, chain, min(timeout_s, lease_s), lease_s < timeout_s)
        try:
            message = _message_of(row, self._publisher.exchange)
            confirm = self._publisher.begin(message, sent.timeout_s)
        except (PublishError, EventError) as error:
            self._fail(sent, error)
            return
        self._sent.add(confirm)
        confirm.add_done_callback(partial(self._answered, sent, message))

    def _answered(self, sent: _Sent, message: Message, confirm: Confirm) -> None:
        if confirm not in self._sent or self._over is None:
            return  # it was abandoned
        self._sent.discard(confirm)
        try:
            failure = confirm.result()
        except BaseException as error:  # noqa: BLE001 - whoever awaits the batch is told
            self._end(error)
            return
        if failure is None:
            self.confirmed.append(sent.row.seq)
            self._finished(1)
            self._send_next(sent.chain)
        else:
            self._fail(sent, self._publisher.explained(failure, message, sent.timeout_s))
        self._go_on()

    def _fail(self, sent: _Sent, error: Exception) -> None:
        """The row was not confirmed, and those behind it in its chain have to wait."""
        match error:
            case PublishTimeoutError() if sent.is_cut_short:
                self.left.append(sent.row)
            case PublishTimeoutError():
                self.overdue.append((sent.row, error))
            case ConnectionLostError():
                self.lost = error
                self.left.append(sent.row)
            case BrokerRefusedError() | TopologyMismatchError():
                self.fatal = error
                self.left.append(sent.row)
            case _:
                self.refused.append((sent.row, error))
        self._finished(1)
        self._leave(list(sent.chain))

    def _leave(self, rows: list[ClaimedRow]) -> None:
        self.left += rows
        self._finished(len(rows))

    def _end(self, error: BaseException | None = None) -> None:
        if self._over is None or self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)


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


def _message_of(row: ClaimedRow, exchange: str) -> Message:
    """Raises HeadersError or UndecodableError for a row that `Outbox.add` has not written."""
    try:
        attributes = _attributes.decode(row.body)
        headers = None if row.headers is None else decoded_headers(row.headers)
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
    return event_message(envelope, row.body, (exchange, row.topic, True), row.priority, headers)
