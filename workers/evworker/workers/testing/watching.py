"""A worker that is watched: the real one, whose plugins tell what they do, and which can crash.

Nothing of the worker is replaced. Its consumers get one more middleware, outside all others; their
policies are asked as always, and note the answer; the settlement is the worker's own, and notes
what it has settled.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from evworker.broker import ConfigurationError
from evworker.workers.consumer import Consumer, Next
from evworker.workers.context import Context, current_context
from evworker.workers.killswitch import KillSwitch
from evworker.workers.outcome import Outcome, Retried, Succeeded
from evworker.workers.plugin import Lifespan, Plugin
from evworker.workers.retry import Decision, Retry
from evworker.workers.settlement import Settlement
from evworker.workers.testing.ledger import Ledger
from evworker.workers.worker import Worker

if TYPE_CHECKING:
    from evworker.broker.delivery import Delivery

_PAUSE_S = 0.01
"""How long a kill switch pauses a queue in a test, at most."""


class CrashError(BaseException):
    """What stands in for the end of the process while a handler's transaction is open.

    No Exception, so that no handler's `except` takes it for a failure.
    """


Where = Literal["crash_before_ack", "crash_after_commit"]


class Crashes:
    """The crashes that are to come."""

    def __init__(self) -> None:
        self.due: list[tuple[Where, str | None]] = []
        """Where, and at which consumer; None for the next, whichever it is."""

    def take(self, where: Where, context: Context | None) -> bool:
        """Whether the worker is to crash here, which it then does."""
        for name in (context.consumer if context else None, None):
            if (where, name) in self.due:
                self.due.remove((where, name))
                return True
        return False


class WatchedWorker(Worker):
    """A worker that tells a ledger what it does, and crashes when it is told to."""

    def __init__(
        self,
        plugins: Iterable[Plugin],
        broker: str,
        ledger: Ledger,
        crashes: Crashes,
        **options: Any,
    ) -> None:
        super().__init__(plugins, broker, **options)
        self._settlement = _watched_settlement(self, ledger, crashes)

    @property
    def in_process(self) -> int:
        """Deliveries that have come and are not settled yet."""
        return self._in_process

    @property
    def queues(self) -> list[str]:
        """Those whose messages are still to be handled, by their names on the broker."""
        return [queue for feed in self._feeds for queue in feed.queues_to_drain]

    def wake_relay(self) -> None:
        """Have what was committed to the outbox published now."""
        if self._database is not None:
            self._database.wake_relay()

    async def is_relayed(self) -> bool:
        """Whether nothing in the outbox can be published now."""
        return self._database is None or await self._database.is_relayed()

    async def crash(self, delivery: Delivery) -> None:
        """Lose the connection on which it came, with whatever is not acked on it."""
        await self._consuming.break_off()
        while delivery.is_live:  # noqa: ASYNC110 - its end is in the loop already
            await asyncio.sleep(0)


def _watched_settlement(
    worker: WatchedWorker, ledger: Ledger, crashes: Crashes
) -> type[Settlement]:
    class WatchedSettlement(Settlement):
        def settle_at_once(self, _delivery: Delivery, _outcome: Outcome) -> bool:
            return False  # all goes through `settle`, where it is watched

        async def settle(
            self, delivery: Delivery, outcome: Outcome, *, message_id: str | None
        ) -> None:
            crash = ""
            if isinstance(outcome, Succeeded):
                worker.wake_relay()
                if crashes.take("crash_after_commit", current_context.get()):
                    crash = "crashed after the commit, before the ack"
            elif isinstance(outcome, Retried) and isinstance(outcome.failure.error, CrashError):
                crash = "crashed before the commit and the ack"
            if crash:
                await worker.crash(delivery)
            await super().settle(delivery, outcome, message_id=message_id)
            ledger.ended(delivery, outcome, current_context.get(), crash=crash)

    return WatchedSettlement


class WatchedRetry(Retry):
    """Another policy's decisions, noted; with `shortened` each wait is, in the same order."""

    def __init__(self, policy: Retry, ledger: Ledger, *, shortened: bool) -> None:
        super().__init__(
            *policy.delays_s,
            give_up_on=policy.give_up_on,
            discard_on=policy.discard_on,
            jitter=policy.jitter,
        )
        object.__setattr__(self, "within_s", policy.within_s)
        object.__setattr__(self, "watched", (policy, ledger, shortened))

    watched: tuple[Retry, Ledger, bool]

    @property
    def waits_s(self) -> tuple[float, ...]:
        policy, _, shortened = self.watched
        return tuple(map(_shortened, policy.waits_s)) if shortened else policy.waits_s

    def decide(
        self, error: BaseException, *, failed_attempts: int, failing_for_s: float = 0.0
    ) -> Decision:
        policy, ledger, shortened = self.watched
        if isinstance(error, CrashError):
            return Decision("retry")
        context = current_context.get()
        if context is not None:
            failing_for_s += ledger.waited_s(context)
        decision = policy.decide(
            error, failed_attempts=failed_attempts, failing_for_s=failing_for_s
        )
        if decision.what != "retry":
            return decision
        if context is not None:
            ledger.will_wait(context, decision.delay_s)
        return replace(decision, delay_s=_shortened(decision.delay_s)) if shortened else decision


def _shortened(delay_s: float) -> float:
    """Some hundredths of a second: 26 ms for a second, 61 ms for five minutes, 102 ms for a day."""
    return min(delay_s, round(0.02 + 0.005 * math.log2(1 + delay_s), 3))


def watched_plugin(
    plugin: Plugin,
    ledger: Ledger,
    crashes: Crashes,
    states: dict[Plugin, Any],
    *,
    prefix: str,
    shortened: bool,
) -> Plugin:
    """The plugin, watched; its queues get a `prefix`, its state is put into `states`."""

    async def watch(event: Any, context: Context, call_next: Next) -> None:
        ledger.begins(context, event)
        await call_next(event, context)
        if crashes.take("crash_before_ack", context):
            raise CrashError

    def watched(consumer: Consumer) -> Consumer:
        return replace(
            consumer,
            queue=prefix + consumer.queue,
            middleware=(watch, *consumer.middleware),
            retry=WatchedRetry(consumer.retry, ledger, shortened=shortened),
            kill_switch=_impatient(consumer.kill_switch),
        )

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        if plugin.lifespan is None:
            yield None
            return
        async with plugin.lifespan() as state:
            states[plugin] = state
            yield state

    return _Copy(plugin.name, map(watched, plugin.consumers), lifespan)


def only(handler: Callable[..., Any]) -> Plugin:
    """A plugin with nothing but this handler's consumers, from the plugins of its module.

    Raises ConfigurationError if there are none.
    """
    module = getattr(inspect.unwrap(handler), "__globals__", {})
    for plugin in module.values():
        if isinstance(plugin, Plugin):
            its_own = [one for one in plugin.consumers if one.handler == handler]
            if its_own:
                return _Copy(plugin.name, its_own, plugin.lifespan)
    name = getattr(handler, "__qualname__", repr(handler))
    raise ConfigurationError(
        f"no plugin in the module of {name} has it as a handler; give the plugin instead"
    )


class _Copy(Plugin):
    def __init__(self, name: str, consumers: Iterable[Consumer], lifespan: Lifespan | None) -> None:
        super().__init__(name, lifespan=lifespan)
        self._consumers = list(consumers)


def _impatient(switch: KillSwitch | None) -> KillSwitch | None:
    if switch is None or switch.pause_s <= _PAUSE_S:
        return switch
    return KillSwitch(
        *switch.on,
        failures=switch.failures,
        share=switch.share,
        window=switch.window_s,
        pause=_PAUSE_S,
    )
