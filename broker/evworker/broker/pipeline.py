"""Many publishes on their way at once, whose confirms are awaited in the order of their sending."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from evworker.broker.errors import EvworkerError

if TYPE_CHECKING:
    from evworker.broker.envelope import Envelope
    from evworker.broker.fastlane.confirms import Confirm
    from evworker.broker.message import Message
    from evworker.broker.sending import Sending

_AT_ONCE = 2_000
_BYTES_AT_ONCE = 32 * 1024 * 1024

# What was sent goes out, and others come to their turn, after so many.
_TURN = 64


class Pipeline:
    """What bounds the memory that many events take: some thousands of them, or some MiB."""

    def __init__(self, sending: Sending, timeout_s: float) -> None:
        self.confirmed: list[Envelope] = []
        self.failed: list[tuple[Envelope, EvworkerError]] = []
        self._sending = sending
        self._timeout_s = timeout_s
        self._out: deque[tuple[Envelope, Message, Confirm]] = deque()
        self._out_bytes = 0
        self._put = 0

    def put_now(self, envelope: Envelope, message: Message) -> bool:
        """Send it behind all others; False, and not sent, if `put` has to wait first.

        Raises HeadersError, with nothing sent.
        """
        if self._put == _TURN or len(self._out) >= _AT_ONCE or self._out_bytes >= _BYTES_AT_ONCE:
            return False
        confirm = self._sending.begin_now(message, self._timeout_s)
        if confirm is None:
            return False
        self._keep(envelope, message, confirm)
        return True

    async def put(self, envelope: Envelope, message: Message) -> None:
        """The same, as soon as there is room. Raises as `Publisher.send` does."""
        self._put = 0
        await asyncio.sleep(0)
        while len(self._out) >= _AT_ONCE or (self._out and self._out_bytes >= _BYTES_AT_ONCE):
            await self._take()
        if not self.put_now(envelope, message):
            confirm = await self._sending.begin_in_order(message, self._timeout_s)
            self._keep(envelope, message, confirm)

    async def drain(self) -> None:
        """Wait until nothing is on its way any more."""
        while self._out:
            await self._take()

    def abandon(self) -> None:
        """Await nothing more: whoever wanted to know has been cancelled."""
        for *_, confirm in self._out:
            confirm.cancel()
        self._out.clear()

    def _keep(self, envelope: Envelope, message: Message, confirm: Confirm) -> None:
        self._out.append((envelope, message, confirm))
        self._out_bytes += len(message.body)
        self._put += 1

    async def _take(self) -> None:
        """Wait for the oldest, and take all behind it that are done as well."""
        await asyncio.wait((self._out[0][-1],))
        while self._out and self._out[0][-1].done():
            envelope, message, confirm = self._out.popleft()
            self._out_bytes -= len(message.body)
            failure = confirm.result()
            if failure is None:
                self.confirmed.append(envelope)
                continue
            error = self._sending.explained(failure, message, self._timeout_s)
            if error is not failure:
                error.__cause__ = failure
            self.failed.append((envelope, error))
