"""A worker that dies at a step of its own: while it decodes, while its handler runs, or after."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, Literal

from evworker.broker import Event
from evworker.workers import Context, DeadLetter, Plugin, Retry
from evworker.workers.consumer import Next
from tests.workers.stage import SOON, OutOfLuckError

Fate = Literal["lives", "dies decoding", "dies handling", "dies with its work done", "waits"]


class Wished(Event, topic="wishes.made"):
    wish: Literal["success", "one failure", "a dead letter"]


def make_mortal(queue: str, *, done: int, priorities: int | None, fate: Fate = "lives") -> Plugin:
    """Handles one event at a time, as it wishes, and takes ten ahead.

    Each time that the handler has done its work is a line, the event's id.
    """

    def die_if(its_fate: Fate) -> None:
        if fate == its_fate:
            os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(Wished):
        def __post_init__(self) -> None:
            die_if("dies decoding")

    async def handle(event: Any, ctx: Context) -> None:
        die_if("dies handling")
        if fate == "waits":
            os.write(done, b"waiting\n")
            await asyncio.Event().wait()
        if event.wish == "a dead letter":
            raise DeadLetter("as wished")
        if event.wish == "one failure" and ctx.attempt == 1:
            raise OutOfLuckError
        os.write(done, f"{ctx.envelope.id}\n".encode())

    async def die_after(event: Any, ctx: Context, call_next: Next) -> None:
        await call_next(event, ctx)
        die_if("dies with its work done")

    plugin = Plugin("mortal")
    plugin.consumer(
        Mortal,
        name="handle",
        queue=queue,
        retry=Retry(SOON),
        priorities=priorities,
        concurrency=1,
        prefetch=10,
        middleware=[die_after],
    )(handle)
    return plugin
