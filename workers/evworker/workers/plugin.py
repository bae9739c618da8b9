"""Plugins: named groups of consumers, with a lifespan. Objects: a test can make two."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from evworker.broker import ConsumerError, events_topology
from evworker.broker.topology import DEFAULT_EXCHANGE, Topology, queue_topology
from evworker.workers.consumer import (
    DEFAULT_CONCURRENCY,
    DEFAULT_CRASH_LIMIT,
    Consumer,
    Handler,
    Middleware,
    check_shared_queues,
    declare_consumer,
)
from evworker.workers.killswitch import DEFAULT_KILL_SWITCH, KillSwitch
from evworker.workers.retry import DEFAULT_RETRY, Retry

if TYPE_CHECKING:
    from types import EllipsisType

    from evworker.broker import BrokerVersion, Duration, Event

H = TypeVar("H", bound=Handler)

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]  # it yields whatever its user likes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Plugin:
    """A group of consumers that `evworker run` loads together.

    `lifespan` is a function that returns an async context manager, entered before the first event
    and left after the last; handlers find what it yielded in ``ctx.state``. `middleware` wraps
    every handler of the plugin, the first one outermost.

    >>> billing = Plugin("billing")
    """

    def __init__(
        self, name: str, *, lifespan: Lifespan | None = None, middleware: Iterable[Middleware] = ()
    ) -> None:
        """Raises ConsumerError for a name that could not be part of a queue's."""
        if not _NAME.fullmatch(name):
            raise ConsumerError(
                f"the plugin name {name!r} must be letters, digits, '.', '_' and '-'"
            )
        self.name = name
        self.lifespan = lifespan
        self.middleware = tuple(middleware)
        self._consumers: list[Consumer] = []

    def __repr__(self) -> str:
        return f"<Plugin {self.name!r}: {len(self._consumers)} consumers>"

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """In the order of their declaration."""
        return tuple(self._consumers)

    def consumer(  # noqa: PLR0913 - every policy of a consumer, each with its default
        self,
        *events: type[Event] | str,
        queue: str | None = None,
        name: str | None = None,
        retry: Retry = DEFAULT_RETRY,
        priorities: int | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        prefetch: int | None = None,
        timeout: Duration | EllipsisType | None = ...,
        kill_switch: KillSwitch | None = DEFAULT_KILL_SWITCH,
        crash_limit: int = DEFAULT_CRASH_LIMIT,
        transactional: bool = False,
        middleware: Iterable[Middleware] = (),
    ) -> Callable[[H], H]:
        """Declare the decorated function, ``(event, ctx)``, as a consumer.

        - `events`: event types, or topic patterns (``"orders.*"``, ``"#"``) whose events come as
          AnyEvent unless the handler's annotation names their types. None at all: what the
          handler's first parameter is annotated with.
        - `name`: its stable identity; ``<plugin>.<function>`` unless given. `queue`: the same.
        - `retry`: what happens when it fails; ``Retry("1s", "5s", "30s", "5m")`` unless given.
        - `priorities`: 2 to 10 makes it a priority queue with that many.
        - `concurrency`: how many events it handles at once in one worker.
        - `prefetch`: how many the broker hands out ahead; twice the concurrency unless given.
        - `timeout`: how long one attempt may take, 5 minutes unless given, None for ever. A plain
          function runs in a thread and can't have one.
        - `kill_switch`: pauses the queue while nearly everything fails because a dependency is
          down; on ConnectionError unless given, None for never.
        - `crash_limit`: how often a message may kill its worker while it runs alone, which it does
          once it has come back unsettled twice; then it is a dead letter, ``crashed``.
        - `transactional`: one database transaction around each attempt, in ``ctx.session``. What it
          commits is applied once for each event id, and what ``ctx.publish`` is given is sent if
          and only if it commits. Async functions only, and the worker needs a database.

        The function itself stays as it is. Raises ConsumerError.
        """

        def declare(handler: H) -> H:
            consumer = declare_consumer(
                handler,
                events,
                plugin=self.name,
                name=name,
                queue=queue,
                retry=retry,
                priorities=priorities,
                concurrency=concurrency,
                prefetch=prefetch,
                timeout=timeout,
                kill_switch=kill_switch,
                crash_limit=crash_limit,
                transactional=transactional,
                middleware=(*self.middleware, *middleware),
            )
            check_shared_queues((*self._consumers, consumer))
            self._consumers.append(consumer)
            return handler

        return declare


def check_plugins(plugins: Iterable[Plugin]) -> None:
    """Check that these plugins can run in one worker; raises ConsumerError."""
    plugins = tuple(plugins)
    names = [plugin.name for plugin in plugins]
    for name in names:
        if names.count(name) > 1:
            raise ConsumerError(f"two plugins are named {name!r}; rename one of them")
    for plugin in plugins:
        if not plugin.consumers:
            raise ConsumerError(
                f"plugin {plugin.name!r} has no consumers; declare some with @….consumer(…)"
            )
    check_shared_queues(consumer for plugin in plugins for consumer in plugin.consumers)


def plan_topology(
    plugins: Iterable[Plugin], *, exchange: str = DEFAULT_EXCHANGE, version: BrokerVersion
) -> Topology:
    """What these plugins need on a broker of this version; raises ConfigurationError."""
    topology = events_topology(exchange)
    for queue, consumers in consumers_by_queue(plugins).items():
        topology += plan_queue(queue, consumers, exchange=exchange, version=version)
    return topology


def plan_queue(
    queue: str, consumers: Iterable[Consumer], *, exchange: str, version: BrokerVersion
) -> Topology:
    """What one queue and the consumers that share it need."""
    consumers = tuple(consumers)
    return queue_topology(
        queue,
        exchange=exchange,
        patterns=[pattern for consumer in consumers for pattern in consumer.patterns],
        delays_s=[delay_s for consumer in consumers for delay_s in consumer.retry.waits_s],
        priorities=consumers[0].priorities,
        version=version,
    )


def consumers_by_queue(plugins: Iterable[Plugin]) -> dict[str, tuple[Consumer, ...]]:
    """The consumers of each queue, in the order of their declaration."""
    queues: dict[str, tuple[Consumer, ...]] = {}
    for plugin in plugins:
        for consumer in plugin.consumers:
            queues[consumer.queue] = (*queues.get(consumer.queue, ()), consumer)
    return queues
