"""A worker whose handler throws dice for each attempt, and notes what it did.

The dice know the seed, the event, its attempt and how often the message came back, and nothing
else: who throws them again for the same gets the same.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

from evworker.workers import (
    Context,
    DeadLetter,
    Discard,
    KillSwitch,
    Plugin,
    Retry,
    RetryAfter,
)
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError
from tests.workers.worker_process import KILLED

A_WAIT = "1s"
"""The shortest that a handler can ask for; here its policy has it too, so that a burst knows it."""

CONCURRENCY = 5
PREFETCH = 10

OUTCOMES = {
    "succeed": 100,
    "fail": 30,
    "ask for a wait": 5,
    "dead-letter": 8,
    "discard": 12,
    "take too long": 4,
    "exit": 4,
    "crash": 3,
}


def end(outcome: str) -> None:
    match outcome:
        case "be refused":
            raise ConnectionRefusedError
        case "fail":
            raise OutOfLuckError
        case "ask for a wait":
            raise RetryAfter(A_WAIT)
        case "dead-letter":
            raise DeadLetter("by lot")
        case "discard":
            raise Discard("by lot")
        case "exit":
            raise SystemExit(3)
        case "crash":
            os._exit(KILLED)


def make_dicing(
    queue: str, *, done: int, seed: int, priorities: int | None, outage: Path
) -> Plugin:
    """Each attempt is a line, `<event id> <what it ended with>`.

    While there is a file `outage`, what the handler depends on is down.
    """

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        returns = ctx.headers.get("x-delivery-count", ctx.redelivered)
        dice = random.Random(f"{seed} {ctx.envelope.id} {ctx.attempt} {returns}")
        (outcome,) = dice.choices(list(OUTCOMES), list(OUTCOMES.values()))
        await asyncio.sleep(0)  # so that others begin before it has ended
        if os.access(outage, os.F_OK):
            outcome = "be refused"
        os.write(done, f"{ctx.envelope.id} {outcome}\n".encode())
        if outcome == "take too long":
            await asyncio.Event().wait()
        end(outcome)

    plugin = Plugin("dicing")
    plugin.consumer(
        name="handle",
        queue=queue,
        retry=Retry(SOON, A_WAIT),
        timeout="50ms",
        priorities=priorities,
        concurrency=CONCURRENCY,
        prefetch=PREFETCH,
        kill_switch=KillSwitch(ConnectionError, failures=5, pause="50ms"),
    )(handle)
    return plugin
