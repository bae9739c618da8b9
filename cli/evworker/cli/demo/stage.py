"""What both halves of the demo play on: a broker, a name for what is declared there, a narrator."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evworker.cli.failures import BrokerFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evworker.broker import Connection, Topology
    from evworker.cli.demo.narration import Narration
    from evworker.workers import Context, Next, Plugin

_PATIENCE_S = 3.0  # of who has just pressed Ctrl-C

_DONE = {
    "billing": "charged",
    "notifications": "mailed",
    "analytics": "counted",
    "refunds": "paid back",
    "letters": "written",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """`prefix` is the name of the exchange, and begins those of the queues."""

    narration: Narration
    connection: Connection
    broker_url: str
    prefix: str

    @property
    def kept(self) -> str:
        """Where the broker has what it has confirmed."""
        is_embedded = self.connection.version.is_embedded
        return "in the broker's memory" if is_embedded else "on the broker's disk"

    def plan(self, plugins: Iterable[Plugin]) -> Topology:
        """What the plugins need."""
        from evworker.workers import plan_topology

        return plan_topology(plugins, exchange=self.prefix, version=self.connection.version)

    async def clear(self, plan: Topology) -> None:
        """Remove what the demo declared, and nothing else.

        Raises BrokerFailedError if the broker has gone.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                channel = await self.connection.channel()
        except TimeoutError as error:
            raise BrokerFailedError(
                f"the broker at {self.connection.address} has gone; what is named "
                f"{self.prefix} and {self.prefix}.… is still on it, if it keeps anything"
            ) from error
        for exchange in plan.exchanges:
            await channel.exchange_delete(exchange.name)
        for queue in plan.queues:
            await channel.queue_delete(queue.name)
        await channel.close()


class Account:
    """Watches each attempt from a middleware, as a user's metrics would."""

    def __init__(self, narration: Narration) -> None:
        self._narration = narration
        self._started = 0.0
        self.came_in: dict[str, set[str]] = {}
        self.handled: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()

    def start(self) -> None:
        """Count seconds from now."""
        self._started = time.perf_counter()

    async def watch(self, event: Any, ctx: Context, call_next: Next) -> None:
        from evworker.cli.demo.shop import CardDeclinedError

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
            time.perf_counter() - self._started,
            plugin,
            f"{ctx.envelope.topic} {order}",
            sign,
            style,
            text,
        )


def milliseconds(started: float) -> str:
    """Since then, by `time.perf_counter`."""
    return f"{(time.perf_counter() - started) * 1000:.0f} ms"
