"""A worker that kills itself at a named step: `python -m tests.workers.transactions.dying_process`.

The steps are those of a transactional delivery, in order; each is found where the worker takes it.
Nothing but the kill is changed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from typing import Any

from evworker.workers import Context, Middleware, Next, Plugin, Worker
from evworker.workers.inbox import Inbox
from evworker.workers.lane import Lane
from evworker.workers.transaction import Transaction
from tests.workers.stage import OrderPlaced, PaymentProcessed
from tests.workers.transactions.shop import charge

STEPS = (
    "delivered",
    "inbox row inserted",
    "effect written",
    "outbox row written",
    "handler done",
    "committed",
    "acked",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(owner: type, method: str) -> None:
    original = getattr(owner, method)

    async def dying(*arguments: Any, **options: Any) -> Any:
        die()
        return await original(*arguments, **options)

    setattr(owner, method, dying)


def kill_after(owner: type, method: str) -> None:
    original = getattr(owner, method)

    async def dying(*arguments: Any, **options: Any) -> Any:
        await original(*arguments, **options)
        die()

    setattr(owner, method, dying)


def make_plugin(queues: dict[str, str], dying_at: str | None = None) -> Plugin:
    """A consumer for each step and its queue."""
    plugin = Plugin("dying")
    for step, queue in queues.items():
        plugin.consumer(
            OrderPlaced, name=step, queue=queue, transactional=True, middleware=[watched(dying_at)]
        )(handler(step, dying_at))
    return plugin


def watched(dying_at: str | None) -> Middleware:
    async def watch(event: OrderPlaced, ctx: Context, call_next: Next) -> None:
        if dying_at == "inbox row inserted":
            die()
        await call_next(event, ctx)
        if dying_at == "handler done":
            die()

    return watch


def handler(step: str, dying_at: str | None) -> Next:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        await charge(OrderPlaced(order_id=step), ctx)
        if dying_at == "effect written":
            die()
        await ctx.publish(PaymentProcessed(order_id=step))
        if dying_at == "outbox row written":
            die()

    return handle


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--exchange", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--step", choices=STEPS, required=True)
    options = parser.parse_args()
    match options.step:
        case "delivered":
            kill_before(Inbox, "begin")
        case "committed":
            kill_after(Transaction, "commit")
        case "acked":
            kill_after(Lane, "attempt")
    worker = Worker(
        [make_plugin({options.step: options.queue}, options.step)],
        options.url,
        exchange=options.exchange,
        database=options.database,
        relay=False,
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
