"""A relay as a process of its own, which kills itself at a named step.

``python -m tests.broker.outbox.relay_process --database … --broker … --exchange … --die STEP``

It dies as `kill -9` has it: nothing is closed, nothing is flushed, nobody is told.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from typing import NoReturn

from evworker.broker.fastlane.confirms import Confirm
from evworker.broker.message import Message
from evworker.broker.outbox.relay import Relay
from evworker.broker.outbox.store import Claim, ClaimedRow, OutboxStore
from evworker.broker.publisher import Publisher

STEPS = (
    "claimed",
    "body read",
    "published unconfirmed",
    "some confirmed",
    "confirmed and not settled",
    "settled",
)
LEASE = "2s"


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class DyingStore(OutboxStore):
    step: str

    async def claim(self, limit: int) -> Claim | None:
        claim = await super().claim(limit)
        if claim is not None and self.step == "claimed":
            die()
        return claim

    async def read(self, claim: Claim) -> list[ClaimedRow]:
        rows = await super().read(claim)
        if self.step == "body read":
            die()
        return rows

    async def settle(self, token: str, seqs: Sequence[int]) -> int:
        if self.step == "confirmed and not settled":
            die()
        settled = await super().settle(token, seqs)
        if self.step == "settled":
            die()
        return settled


class DyingPublisher(Publisher):
    step: str
    confirmed = 0

    def begin(self, message: Message, timeout_s: float) -> Confirm:
        confirm = super().begin(message, timeout_s)
        confirm.add_done_callback(self.is_confirmed)
        return confirm

    def is_confirmed(self, _confirm: Confirm) -> None:
        """Before the relay hears of it."""
        if self.step == "published unconfirmed":
            die()  # not before the broker has read it: what is in this process dies with it
        DyingPublisher.confirmed += 1
        if self.step == "some confirmed" and DyingPublisher.confirmed == 7:
            die()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--exchange", required=True)
    parser.add_argument("--die", choices=STEPS, required=True)
    options = parser.parse_args()
    DyingStore.step = DyingPublisher.step = options.die
    relay = Relay(
        options.database, options.broker, exchange=options.exchange, lease=LEASE, batch=12
    )
    relay._store.__class__ = DyingStore  # noqa: SLF001 - to die inside is no part of its interface
    relay._publisher.__class__ = DyingPublisher  # noqa: SLF001
    await relay.run()


if __name__ == "__main__":
    asyncio.run(main())
