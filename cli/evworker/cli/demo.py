"""`evworker demo`: the whole way of an event on a real broker, narrated as it happens."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.failures import BrokerFailedError, WrongError
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import Connection, Topology
    from evworker.cli.narration import Narration
    from evworker.workers import Context, Next, Plugin

SHOP = "evworker.cli.demo_shop:shop"

# Grace's bank needs three attempts; the card of Alan is declined.
ORDERS = (("1001", "Ada", "19.90"), ("1002", "Grace", "42.00"), ("1003", "Alan", "1999.00"))


@click.command(cls=Verb)
@options.broker_url
def demo(broker_url: str) -> None:
    """An event's whole way on a real broker, narrated as it happens.

    A little shop with three plugins: orders are placed, paid and announced; a bank that does not
    answer is asked again, and a declined card becomes a dead letter. It takes a few seconds, in an
    exchange and queues of its own, which are deleted at the end.
    """
    from evworker.broker import BrokerUnreachableError
    from evworker.cli.logs import configure_logs

    # What would be logged is what the demo tells.
    configure_logs("critical", "console")
    try:
        interrupts.run(_perform(broker_url))
    except BrokerUnreachableError as error:
        raise BrokerFailedError(
            f"{error} Start one with `docker run -p 5672:5672 rabbitmq:4`, "
            "or name yours with --broker-url"
        ) from error


async def _perform(broker_url: str) -> None:
    from evworker.broker import Connection
    from evworker.cli.demo_shop import shop
    from evworker.cli.narration import Narration
    from evworker.workers import plan_topology

    prefix = f"demo-{os.urandom(3).hex()}"
    narration = Narration()
    account = _Account(narration)
    plugins = shop(prefix, middleware=[account.watch])
    async with Connection(broker_url, name="evworker demo") as connection:
        plan = plan_topology(plugins, exchange=prefix, version=connection.version)
        narration.title("evworker demo", f"RabbitMQ {connection.version} at {connection.address}")
        try:
            _introduce(narration, plugins)
            await _declare(narration, connection, plan)
            await _place_orders(narration, connection, prefix)
            counts = await _run_worker(narration, account, plugins, broker_url, prefix)
            await _show_dead_letter(narration, connection, plugins[0])
            sums = await _sum_up(narration, connection, account, plugins)
        finally:
            await _delete(connection, plan)
    _tell_what_next(narration, prefix)
    handled, dead_lettered = sums
    if (handled, dead_lettered) != (counts.handled, sum(counts.dead_lettered.values())):
        raise WrongError("the worker counted otherwise; please report this")


def _introduce(narration: Narration, plugins: tuple[Plugin, ...]) -> None:
    from evworker.cli.demo_shop import OrderPlaced

    narration.step("A shop has three plugins. This is an event, and the heart of the first plugin:")
    narration.code(OrderPlaced, plugins[0].consumers[0].handler)
    for plugin in plugins:
        for consumer in plugin.consumers:
            topics = ", ".join(consumer.patterns)
            narration.say(f"{plugin.name:<14} takes {topics} from its queue {consumer.queue}")


async def _declare(narration: Narration, connection: Connection, plan: Topology) -> None:
    from evworker.broker import apply_topology

    started = time.perf_counter()
    await apply_topology(connection, plan)
    narration.step("What they need is declared on the broker.")
    objects = f"{len(plan.exchanges)} exchanges and {len(plan.queues)} queues"
    narration.say(f"{objects} in {_milliseconds(started)}: for each plugin a quorum queue,")
    narration.say("one for each delay before another attempt, and one for dead letters.")


async def _place_orders(narration: Narration, connection: Connection, exchange: str) -> None:
    from decimal import Decimal

    from evworker.broker import Publisher
    from evworker.cli.demo_shop import OrderPlaced

    narration.step("Three orders are placed. No worker runs yet; they wait in their queues.")
    async with Publisher(connection, exchange=exchange, source="demo") as publisher:
        for order, customer, total in ORDERS:
            event = OrderPlaced(order=order, customer=customer, total=Decimal(total))
            started = time.perf_counter()
            await publisher.publish(event, key=order)
            narration.say(
                f"→ {event.__topic__}  order {order}  {customer:<6} {total:>8}   "
                f"on the broker's disk after {_milliseconds(started)}"
            )


async def _run_worker(
    narration: Narration,
    account: _Account,
    plugins: tuple[Plugin, ...],
    broker_url: str,
    exchange: str,
) -> Any:
    from evworker.workers import Worker

    narration.step(
        "A worker starts. Each plugin gets every event it asked for; one that fails disturbs none."
    )
    worker = Worker(plugins, broker_url, exchange=exchange, burst=True)
    account.started = time.perf_counter()
    await worker.run()
    return worker.counts


async def _show_dead_letter(narration: Narration, connection: Connection, billing: Plugin) -> None:
    from evworker.broker import browse_dead_letters, dead_letter_queue

    queue = dead_letter_queue(billing.consumers[0].queue)
    narration.step("What can't be handled is kept with the reason on it, as a dead letter.")
    for letter in await browse_dead_letters(connection, queue, 10):
        failure = letter.failure
        narration.fields(
            [
                ("queue", queue),
                ("event", f"{letter.topic} {letter.id}"),
                ("data", (letter.envelope.data if letter.envelope else letter.body).decode()),
                ("reason", f"{failure.reason} after attempt {failure.attempts}"),
                ("error", f"{failure.error_type}: {failure.error_message}"),
                ("consumer", f"{failure.consumer} on {failure.host}"),
            ]
        )


async def _sum_up(
    narration: Narration, connection: Connection, account: _Account, plugins: tuple[Plugin, ...]
) -> tuple[int, int]:
    from evworker.broker import count_messages, dead_letter_queue

    narration.step("The sums: every event was handled, or is a dead letter. None is lost.")
    rows: list[tuple[str | int, ...]] = []
    for plugin in plugins:
        queue = plugin.consumers[0].queue
        letters = await count_messages(connection, dead_letter_queue(queue)) or 0
        came_in, handled = len(account.came_in[plugin.name]), account.handled[plugin.name]
        rows.append(
            (plugin.name, came_in, "=", handled, "+", letters, account.retried[plugin.name])
        )
    sums = [sum(int(row[column]) for row in rows) for column in (1, 3, 5, 6)]
    rows.append(("all", sums[0], "=", sums[1], "+", sums[2], sums[3]))
    narration.table(("plugin", "in", "", "handled", "", "dead-lettered", "retries"), rows)
    if any(row[1] != int(row[3]) + int(row[5]) for row in rows):
        raise WrongError("the sums differ; please report this")
    return sums[1], sums[2]


class _Account:
    """Watches each attempt from a middleware, as a user's metrics would."""

    def __init__(self, narration: Narration) -> None:
        self._narration = narration
        self.started = 0.0
        self.came_in: dict[str, set[str]] = {}
        self.handled: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()

    async def watch(self, event: Any, ctx: Context, call_next: Next) -> None:
        from evworker.cli.demo_shop import CardDeclinedError

        plugin = ctx.consumer.partition(".")[0]
        self.came_in.setdefault(plugin, set()).add(ctx.envelope.id)
        try:
            await call_next(event, ctx)
        except CardDeclinedError as error:
            self._tell(plugin, ctx, "✘", "red", f"dead letter: {error}")
            raise
        except Exception as error:
            self.retried[plugin] += 1
            self._tell(
                plugin, ctx, "↻", "yellow", f"attempt {ctx.attempt} failed, again in 1 s: {error}"
            )
            raise
        self.handled[plugin] += 1
        attempt = f" at attempt {ctx.attempt}" if ctx.attempt > 1 else ""
        self._tell(plugin, ctx, "✔", "green", f"{_DONE[plugin]}{attempt}")

    def _tell(self, plugin: str, ctx: Context, sign: str, style: str, text: str) -> None:
        order = ctx.envelope.value()["order"]
        self._narration.moment(
            time.perf_counter() - self.started,
            plugin,
            f"{ctx.envelope.topic} {order}",
            sign,
            style,
            text,
        )


_DONE = {"billing": "charged", "notifications": "mailed", "analytics": "counted"}


async def _delete(connection: Connection, plan: Topology) -> None:
    """Remove what the demo declared, and nothing else."""
    channel = await connection.channel()
    for exchange in plan.exchanges:
        await channel.exchange_delete(exchange.name)
    for queue in plan.queues:
        await channel.queue_delete(queue.name)
    await channel.close()


def _tell_what_next(narration: Narration, prefix: str) -> None:
    narration.step(f"The exchange and the queues of {prefix} are deleted. Try it yourself:")
    narration.command(f"evworker run {SHOP}", "the same shop, until Ctrl-C")
    narration.command(
        f"evworker publish orders.placed '{_AN_ORDER}'",
        "an order that no card will cover, from another terminal",
    )
    narration.command("evworker tap", "watch the events go by")
    narration.command("evworker dlq show shop.billing", "what failed, where and why")
    narration.command("evworker --help", "and the other verbs")


_AN_ORDER = '{"order": "1", "customer": "you", "total": "1999.00"}'


def _milliseconds(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1000:.0f} ms"
