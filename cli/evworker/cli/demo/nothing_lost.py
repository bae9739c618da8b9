"""The first half, which needs a broker alone: what was published is handled, or a dead letter."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

from evworker.broker import (
    Publisher,
    apply_topology,
    browse_dead_letters,
    count_messages,
    dead_letter_queue,
)
from evworker.cli.demo.shop import OrderPlaced, shop
from evworker.cli.demo.stage import Account, Stage, milliseconds
from evworker.cli.failures import WrongError
from evworker.workers import Worker

if TYPE_CHECKING:
    from evworker.broker import Topology
    from evworker.workers import Plugin
    from evworker.workers.outcome import Counts

# Grace's bank needs three attempts; the card of Alan is declined.
ORDERS = (("1001", "Ada", "19.90"), ("1002", "Grace", "42.00"), ("1003", "Alan", "1999.00"))


async def play(stage: Stage) -> None:
    """Raises WrongError if the sums differ."""
    account = Account(stage.narration)
    plugins = shop(stage.prefix, middleware=[account.watch])
    plan = stage.plan(plugins)
    try:
        _introduce(stage, plugins)
        await _declare(stage, plan)
        await _place_orders(stage)
        counts = await _run_worker(stage, account, plugins)
        await _show_dead_letter(stage, plugins[0])
        sums = await _sum_up(stage, account, plugins)
    finally:
        await stage.clear(plan)
    if sums != (counts.handled, sum(counts.dead_lettered.values())):
        raise WrongError("the worker counted otherwise; please report this")


def _introduce(stage: Stage, plugins: tuple[Plugin, ...]) -> None:
    narration = stage.narration
    narration.step("A shop has three plugins. This is an event, and the heart of the first plugin:")
    narration.code(OrderPlaced, plugins[0].consumers[0].handler)
    for plugin in plugins:
        for consumer in plugin.consumers:
            topics = ", ".join(consumer.patterns)
            narration.say(f"{plugin.name:<14} takes {topics} from its queue {consumer.queue}")


async def _declare(stage: Stage, plan: Topology) -> None:
    started = time.perf_counter()
    await apply_topology(stage.connection, plan)
    narration = stage.narration
    narration.step("What they need is declared on the broker.")
    objects = f"{len(plan.exchanges)} exchanges and {len(plan.queues)} queues"
    narration.say(f"{objects} in {milliseconds(started)}: for each plugin a quorum queue,")
    narration.say("one for each delay before another attempt, and one for dead letters.")


async def _place_orders(stage: Stage) -> None:
    stage.narration.step("Three orders are placed. No worker runs yet; they wait in their queues.")
    async with Publisher(stage.connection, exchange=stage.prefix, source="demo") as publisher:
        for order, customer, total in ORDERS:
            event = OrderPlaced(order=order, customer=customer, total=Decimal(total))
            started = time.perf_counter()
            await publisher.publish(event, key=order)
            stage.narration.say(
                f"→ {event.__topic__}  order {order}  {customer:<6} {total:>8}   "
                f"{stage.kept} after {milliseconds(started)}"
            )


async def _run_worker(stage: Stage, account: Account, plugins: tuple[Plugin, ...]) -> Counts:
    stage.narration.step(
        "A worker starts. Each plugin gets every event it asked for; one that fails disturbs none."
    )
    worker = Worker(plugins, stage.broker_url, exchange=stage.prefix, burst=True)
    account.start()
    await worker.run()
    return worker.counts


async def _show_dead_letter(stage: Stage, billing: Plugin) -> None:
    queue = dead_letter_queue(billing.consumers[0].queue)
    stage.narration.step("What can't be handled is kept with the reason on it, as a dead letter.")
    for letter in await browse_dead_letters(stage.connection, queue, 10):
        failure = letter.failure
        stage.narration.fields(
            [
                ("queue", queue),
                ("event", f"{letter.topic} {letter.id}"),
                ("data", (letter.envelope.data if letter.envelope else letter.body).decode()),
                ("reason", f"{failure.reason} after attempt {failure.attempts}"),
                ("error", f"{failure.error_type}: {failure.error_message}"),
                ("consumer", f"{failure.consumer} on {failure.host}"),
            ]
        )


async def _sum_up(stage: Stage, account: Account, plugins: tuple[Plugin, ...]) -> tuple[int, int]:
    stage.narration.step("The sums: every event was handled, or is a dead letter. None is lost.")
    rows: list[tuple[str | int, ...]] = []
    for plugin in plugins:
        queue = plugin.consumers[0].queue
        letters = await count_messages(stage.connection, dead_letter_queue(queue)) or 0
        came_in, handled = len(account.came_in[plugin.name]), account.handled[plugin.name]
        rows.append(
            (plugin.name, came_in, "=", handled, "+", letters, account.retried[plugin.name])
        )
    sums = [sum(int(row[column]) for row in rows) for column in (1, 3, 5, 6)]
    rows.append(("all", sums[0], "=", sums[1], "+", sums[2], sums[3]))
    stage.narration.table(("plugin", "in", "", "handled", "", "dead-lettered", "retries"), rows)
    if any(row[1] != int(row[3]) + int(row[5]) for row in rows):
        raise WrongError("the sums differ; please report this")
    return sums[1], sums[2]
