"""A worker in a process of its own, to be stopped and killed: `work` is all that the process does.

What its handler has done it appends to a file, which tells it however the process ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, Protocol

from evworker.workers import Context, Plugin, Retry, Worker
from tests.workers.stage import OrderPlaced, OutOfLuckError

KILLED = 9


class MakePlugin(Protocol):
    """Makes the plugin, which writes a line into `done` for all that it does."""

    def __call__(self, *, done: int) -> Plugin: ...


class NeverError(Exception):
    """What the policy does not retry."""


def open_done(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def work(make_plugin: MakePlugin, done: Path, log: Path, url: str, options: dict[str, Any]) -> None:
    """Run a worker with these options until it is told to stop; what it prints goes to `log`."""
    with log.open("ab") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    asyncio.run(_work(make_plugin(done=open_done(done)), url, options))


async def _work(plugin: Plugin, url: str, options: dict[str, Any]) -> None:
    worker = Worker([plugin], url, **options)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


def make_plugin(queue: str, *, done: int, priorities: int | None, concurrency: int = 10) -> Plugin:
    """Events whose number ends in 00 never succeed; every seventh fails at its first attempt.

    One whose number is negative kills the process at once, as a segfault would. What was handled is
    a line, `<event id> <attempt>`.
    """
    plugin = Plugin("process")

    async def handle(event: OrderPlaced, ctx: Context) -> None:
        number = int(event.order_id)
        if number < 0:
            os._exit(KILLED)
        if number % 100 == 0:
            raise NeverError
        if number % 7 == 0 and ctx.attempt == 1:
            raise OutOfLuckError
        os.write(done, f"{ctx.envelope.id} {ctx.attempt}\n".encode())
        await asyncio.sleep(0.002)  # so that whoever kills it finds some that are not acked

    plugin.consumer(
        name="handle",
        queue=queue,
        retry=Retry("100ms", "100ms", give_up_on=NeverError),
        priorities=priorities,
        concurrency=concurrency,
    )(handle)
    return plugin
