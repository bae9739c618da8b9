"""Looking at a broker without changing anything on it: what is there, and what a user may do.

Rights can't be read over AMQP. Each is found out by a request that the broker checks for rights
first and then can't carry out: a queue with a negative time to live is never made, a consumer whose
priority is a word never gets a message, an unbinding of what was never bound changes nothing. The
answer 403 means "may not", any other "may". Each comes on a channel of its own, which it may close.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import aiormq.exceptions
from aiormq import spec

from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel
from evworker.broker.declare import Difference, diff_topology
from evworker.broker.errors import PublishTimeoutError
from evworker.broker.topology import Binding, Exchange, Queue, Topology

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel, DeliveredMessage

    from evworker.broker.connection import Connection

PUBLISH_TIMEOUT_S = 5.0

_REFUSED = aiormq.exceptions.ChannelAccessRefused
_ALLOWED = (
    aiormq.exceptions.ChannelPreconditionFailed,
    aiormq.exceptions.ChannelNotFoundEntity,
)

Act = Literal["declare", "bind", "consume", "publish"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that this user may not do."""

    act: Act
    name: str
    """The exchange or queue; the default exchange is ""."""
    reason: str
    """What the broker said."""


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What a queue tells about itself: messages that are ready, and subscriptions."""

    messages: int
    consumers: int


async def count_queue(connection: Connection, queue: str) -> QueueCounts | None:
    """None when there is no such queue, or when this user may not even look at it."""
    with broker_errors(f"look at queue {queue!r}"):
        channel = await connection.channel()
        try:
            declared = await channel.queue_declare(queue, passive=True, timeout=RPC_TIMEOUT_S)
        except (aiormq.exceptions.ChannelNotFoundEntity, _REFUSED):
            return None
        finally:
            await close_channel(channel)
    return QueueCounts(declared.message_count or 0, declared.consumer_count or 0)


async def all_differences(connection: Connection, topology: Topology) -> list[Difference]:
    """As `diff_topology`, but with every argument of a queue that differs.

    The broker names the first one only. Asked again, with what it has of that one, it names the
    next.
    """
    planned = {queue.name: queue for queue in topology.queues}
    differences = []
    for difference in await diff_topology(connection, topology):
        differences.append(difference)
        if difference.kind == "queue" and difference.state == "different":
            differences += await _further(connection, planned[difference.name], difference)
    return differences


async def _further(
    connection: Connection, queue: Queue, difference: Difference
) -> list[Difference]:
    arguments = dict(queue.arguments)
    named: list[str] = []
    further: list[Difference] = []
    while argument := _unnamed(difference, named):
        named.append(argument)
        if difference.found in (None, "none"):
            arguments.pop(argument, None)
        else:
            arguments[argument] = _as_argument(difference.found, arguments.get(argument))
        asked = Topology(queues=(Queue(queue.name, arguments),))
        (difference,) = await diff_topology(connection, asked)
        if _unnamed(difference, named):
            further.append(difference)
    return further


def _unnamed(difference: Difference, named: list[str]) -> str | None:
    argument = difference.argument or ""
    if difference.state != "different" or argument in named or not argument.startswith("x-"):
        return None
    return argument


def _as_argument(found: str, planned: str | int | None) -> str | int:
    if found in ("true", "false"):
        return found == "true"
    return found if isinstance(planned, str) or not found.isdecimal() else int(found)


async def may_declare(connection: Connection, thing: Exchange | Queue) -> Refusal | None:
    """Whether it may be declared, there or not; what comes back says no. Nothing is made."""

    async def ask(channel: AbstractChannel) -> None:
        if isinstance(thing, Queue):
            await channel.queue_declare(
                thing.name,
                durable=True,
                arguments={"x-queue-type": "quorum", "x-message-ttl": -1},
                timeout=RPC_TIMEOUT_S,
            )
        else:
            await channel.exchange_declare(
                thing.name,
                exchange_type=thing.kind,
                durable=True,
                arguments={"alternate-exchange": 1},  # it should be a name
                timeout=RPC_TIMEOUT_S,
            )

    return await _refused(connection, "declare", thing.name, ask)


async def may_bind(connection: Connection, binding: Binding) -> Refusal | None:
    """Whether the queue may be bound so; what comes back says no. No binding comes or goes."""

    async def ask(channel: AbstractChannel) -> None:
        # The same rights as binding. Arguments are part of a binding's identity.
        await channel.queue_unbind(
            binding.queue,
            binding.exchange,
            binding.pattern,
            arguments={"evworker-asks": _unheard_of()},
            timeout=RPC_TIMEOUT_S,
        )

    return await _refused(connection, "bind", binding.queue, ask)


async def may_consume(connection: Connection, queue: str) -> Refusal | None:
    """Whether the queue may be consumed from; what comes back says no. No message is taken."""

    async def ask(channel: AbstractChannel) -> None:
        await channel.basic_qos(prefetch_count=1, timeout=RPC_TIMEOUT_S)
        await channel.basic_consume(
            queue,
            _nothing,
            arguments={"x-priority": "evworker asks whether it may"},  # it should be a number
            timeout=RPC_TIMEOUT_S,
        )

    return await _refused(connection, "consume", queue, ask)


async def may_publish(connection: Connection, exchange: str) -> Refusal | None:
    """Whether one may publish to an exchange that has a name; what comes back says no."""

    async def ask(channel: AbstractChannel) -> None:
        # Whoever binds an exchange to another one makes it publish there, and needs the right to.
        try:
            await channel.exchange_unbind(
                destination=exchange,
                source="amq.fanout",
                routing_key=_unheard_of(),
                arguments={"evworker-asks": _unheard_of()},
                timeout=RPC_TIMEOUT_S,
            )
        except _REFUSED as error:
            if f"'{exchange}'" in str(error):
                raise  # else it is reading amq.fanout that is refused, which is checked later

    return await _refused(connection, "publish", exchange, ask)


async def may_publish_to_queues(connection: Connection) -> Refusal | None:
    """Whether one may publish to the default exchange; what comes back says no.

    Nothing but a publish needs that right. This one is not accepted by any broker, since its
    expiration is a word; and it is addressed to nobody. It takes a connection of its own: a broker
    that is short of memory or disk stops reading from those that publish. Raises
    PublishTimeoutError then.
    """

    async def ask(channel: AbstractChannel) -> None:
        await channel.basic_publish(
            b"",
            exchange="",
            routing_key=_unheard_of(),
            properties=spec.Basic.Properties(expiration="never"),
            mandatory=False,
        )

    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT_S):
            refusal = await _refused(connection, "publish", "", ask, confirms=True)
            # It may answer the first publish, and not read on.
            await close_channel(await connection.channel())
    except TimeoutError as error:
        raise PublishTimeoutError(
            f"the broker takes no messages: it did not answer within {PUBLISH_TIMEOUT_S:g} s"
        ) from error
    return refusal


async def _refused(
    connection: Connection,
    act: Act,
    name: str,
    ask: Callable[[AbstractChannel], Awaitable[None]],
    *,
    confirms: bool = False,
) -> Refusal | None:
    with broker_errors(f"ask whether one may {act} {name!r}"):
        channel = await connection.channel(confirms=confirms)
        try:
            await ask(channel)
        except _REFUSED as error:
            return Refusal(act, name, str(error))
        except _ALLOWED:
            pass
        finally:
            await close_channel(channel)
    return None


async def _nothing(message: DeliveredMessage) -> None:
    """Nothing comes."""


def _unheard_of() -> str:
    return f"evworker-doctor-{uuid.uuid4().hex}"
