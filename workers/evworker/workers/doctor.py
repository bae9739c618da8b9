"""Whether a broker and some plugins can keep the promises: gathered in one step, judged in another.

Gathering changes nothing on the broker, see `evworker.broker.inspection`. All judgements are pure
functions of what was gathered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evworker.broker import (
    BrokerError,
    Connection,
    PublishTimeoutError,
    browse_dead_letters,
    dead_letter_queue,
)
from evworker.broker.errors import DatabaseError
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
from evworker.workers.database_checks import (
    DEFAULT_INBOX_WINDOW_S,
    check_database,
    check_inbox,
    check_outbox,
)
from evworker.workers.finding import DatabaseSeen, Finding, Observed
from evworker.workers.permission_checks import check_permissions
from evworker.workers.plugin import Plugin, check_plugins, consumers_by_queue, plan_topology

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

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
    check_database,
    check_outbox,
    check_inbox,
    check_unseen,
)


async def examine(
    plugins: Iterable[Plugin],
    connection: Connection,
    exchange: str = DEFAULT_EXCHANGE,
    *,
    ack_timeout_s: float | None = DEFAULT_ACK_TIMEOUT_S,
    database: str | None = None,
    inbox_window_s: float = DEFAULT_INBOX_WINDOW_S,
) -> list[Finding]:
    """What is to be said of this broker, this database and these plugins; nothing is changed.

    `ack_timeout_s` is the broker's ``consumer_timeout``, which it tells nobody; None where it has
    none. `database` is the URL that the workers have, if any, and `inbox_window_s` how long their
    inboxes remember. Raises ConsumerError or ConfigurationError for plugins that can't run,
    BrokerError when the broker does not answer; a database that doesn't is a finding.
    """
    plugins = tuple(plugins)
    check_plugins(plugins)
    seen = await _gathered(plugins, connection, exchange, ack_timeout_s)
    return diagnose(
        replace(
            seen,
            database=await _look_at_database(database) if database else None,
            inbox_window_s=inbox_window_s,
            oldest_letters=await _oldest_letters(connection, plugins),
        )
    )


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


async def _look_at_database(url: str) -> DatabaseSeen:
    """How the database stands; what is wrong with it is told, not raised.

    Raises DatabaseUrlError for a URL that can't be read, or whose driver is not installed.
    """
    from evworker.broker.database.engine import address_of, open_engine  # noqa: PLC0415
    from evworker.broker.database.schema import check_tables  # noqa: PLC0415
    from evworker.broker.outbox.operating import outbox_status  # noqa: PLC0415

    engine = open_engine(url)
    try:
        await check_tables(engine)
        return DatabaseSeen(address=address_of(engine), outbox=await outbox_status(engine))
    except DatabaseError as error:
        return DatabaseSeen(address=address_of(engine), fault=error)
    finally:
        await engine.dispose()


async def _oldest_letters(
    connection: Connection, plugins: tuple[Plugin, ...]
) -> dict[str, datetime]:
    """When the oldest letter died, of each queue whose letters an inbox may have to remember."""
    found = {}
    for work, consumers in consumers_by_queue(plugins).items():
        if not any(consumer.transactional for consumer in consumers):
            continue
        queue = dead_letter_queue(work)
        try:
            letters = await browse_dead_letters(connection, queue, 1)
        except BrokerError:
            continue  # it is missing, or may not be read: the checks of the broker say so
        for letter in letters:
            if letter.died_at is not None:
                found[queue] = letter.died_at
    return found


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
