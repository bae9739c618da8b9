"""Whether a broker and some plugins can keep the promises: gathered in one step, judged in another.

Gathering changes nothing on the broker, see `evworker.broker.inspection`. All judgements are pure
functions of what was gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evworker.broker import Connection, PublishTimeoutError, dead_letter_queue
from evworker.broker.inspection import (
    Refusal,
    all_differences,
    count_queue,
    may_bind,
    may_consume,
    may_declare,
    may_publish,
    may_publish_to_queues,
)
from evworker.broker.topology import DEFAULT_EXCHANGE, Topology, quarantine_queue
from evworker.workers.broker_checks import (
    check_address,
    check_topology,
    check_unseen,
    check_version,
    check_waiting,
)
from evworker.workers.consumer_checks import (
    DEFAULT_ACK_TIMEOUT_S,
    check_ack_timeout,
    check_prefetch,
    check_shared_queues,
)
from evworker.workers.finding import Finding, Observed
from evworker.workers.permission_checks import check_permissions
from evworker.workers.plugin import Plugin, check_plugins, consumers_by_queue, plan_topology

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evworker.broker import Exchange, Queue

_CHECKS = (
    check_version,
    check_address,
    check_topology,
    check_waiting,
    check_permissions,
    check_ack_timeout,
    check_prefetch,
    check_shared_queues,
    check_unseen,
)


async def examine(
    plugins: Iterable[Plugin],
    connection: Connection,
    exchange: str = DEFAULT_EXCHANGE,
    *,
    ack_timeout_s: float | None = DEFAULT_ACK_TIMEOUT_S,
) -> list[Finding]:
    """What is to be said about this broker and these plugins; nothing on the broker is changed.

    `ack_timeout_s` is the broker's ``consumer_timeout``, which it tells nobody; None where it has
    none. Raises ConsumerError or ConfigurationError for plugins that can't run, BrokerError when
    the broker does not answer.
    """
    plugins = tuple(plugins)
    check_plugins(plugins)
    return diagnose(await _gathered(plugins, connection, exchange, ack_timeout_s))


def diagnose(seen: Observed) -> list[Finding]:
    """What follows from what was gathered."""
    return [finding for check in _CHECKS for finding in check(seen)]


async def _gathered(
    plugins: tuple[Plugin, ...], connection: Connection, exchange: str, ack_timeout_s: float | None
) -> Observed:
    plan = plan_topology(plugins, exchange=exchange, version=connection.version)
    differences = await all_differences(connection, plan)
    counts = {}
    for queue in plan.queues:
        if (counted := await count_queue(connection, queue.name)) is not None:
            counts[queue.name] = counted
    consumers = consumers_by_queue(plugins)
    refusals = await _refusals(connection, plan, exchange, tuple(consumers))
    to_queues, takes_messages = await _publishing_to_queues(connection)
    return Observed(
        address=connection.address,
        version=connection.version,
        exchange=exchange,
        plan=plan,
        consumers=consumers,
        differences=tuple(differences),
        counts=counts,
        refusals=(*refusals, *to_queues),
        takes_messages=takes_messages,
        ack_timeout_s=ack_timeout_s,
    )


async def _refusals(
    connection: Connection, plan: Topology, exchange: str, queues: tuple[str, ...]
) -> list[Refusal]:
    things: list[Exchange | Queue] = [*plan.exchanges, *plan.queues]
    read = [*queues, *map(quarantine_queue, queues), *map(dead_letter_queue, queues)]
    answers = [
        *[await may_declare(connection, thing) for thing in things],
        *[await may_bind(connection, binding) for binding in plan.bindings],
        *[await may_consume(connection, queue) for queue in dict.fromkeys(read)],
        await may_publish(connection, exchange),
    ]
    return [refusal for refusal in answers if refusal is not None]


async def _publishing_to_queues(connection: Connection) -> tuple[list[Refusal], bool]:
    """What is refused, and whether the broker takes messages at all."""
    async with Connection(connection.address, name=f"{connection.name}, publishing") as publishing:
        try:
            refusal = await may_publish_to_queues(publishing)
        except PublishTimeoutError:
            return [], False
    return ([] if refusal is None else [refusal]), True
