"""A worker as a process of its own, to be killed: `python -m tests.workers.worker_process …`.

It appends one line a handled event to a file, `<event id> <attempt>`, and fsyncs it, so that the
file tells what was done however the process ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from evworker.workers import Context, Plugin, Retry, Worker
from tests.workers.stage import OrderPlaced, OutOfLuckError

KILLED = 9


class NeverError(Exception):
    """What the policy does not retry."""


def make_plugin(queue: str, done: int, *, priorities: int | None, concurrency: int) -> Plugin:
    """Events whose number ends in 00 never succeed; every seventh fails at its first attempt.

    One whose number is negative kills the process at once, as a segfault would.
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
        await asyncio.to_thread(os.fsync, done)

    plugin.consumer(
        name="handle",
        queue=queue,
        retry=Retry("100ms", "100ms", give_up_on=NeverError),
        priorities=priorities,
        concurrency=concurrency,
    )(handle)
    return plugin


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--exchange", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--done", required=True, help="the file that tells what was handled")
    parser.add_argument("--priorities", type=int)
    parser.add_argument("--concurrency", type=int, default=10)
    parser.add_argument("--burst", action="store_true")
    options = parser.parse_args()
    done = os.open(options.done, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    plugin = make_plugin(
        options.queue, done, priorities=options.priorities, concurrency=options.concurrency
    )
    worker = Worker([plugin], options.url, exchange=options.exchange, burst=options.burst)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
