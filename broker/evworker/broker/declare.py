"""The one idempotent step that makes a plan so, and the look at what differs from it.

Nothing is ever deleted or changed to make a plan fit. A definition that differs is told by the
broker's refusal (406) of our declaration, on a channel that dies with it: never on one that
consumes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import aiormq.exceptions
import structlog

from evworker.broker.channels import RPC_TIMEOUT_S, broker_errors, close_channel
from evworker.broker.errors import BrokerError, TopologyMismatchError
from evworker.broker.topology import Binding, Exchange, Queue, Topology

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from evworker.broker.connection import Connection

log = structlog.get_logger("evworker.topology")

State = Literal["same", "missing", "different", "forbidden"]

# "inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': received none but current is the
# value '5' of type 'signedint'"
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' .*?: "
    r"received (?P<expected>.*?) but current is (?P<found>.*)",
    re.DOTALL,
)
_VALUE = re.compile(r"(?:the value )?'(?P<value>[^']*)'")


@dataclass(frozen=True, slots=True)
class Difference:
    """One object of a plan, compared with what the broker has."""

    kind: Literal["exchange", "queue"]
    name: str
    state: State
    argument: str | None = None
    expected: str | None = None
    found: str | None = None
    advice: str = ""

    def __str__(self) -> str:
        if self.state != "different":
            return f"{self.kind} {self.name!r}: {self.state}"
        return (
            f"{self.kind} {self.name!r}: {self.argument} should be {self.expected}, "
            f"but is {self.found}"
        )


async def apply_topology(connection: Connection, topology: Topology) -> set[str]:
    """Declare all that is not there yet; what is there as planned stays as it is.

    Raises TopologyMismatchError with every object that has another definition; the others are
    declared all the same. Without the right to configure, everything is taken to be in place.
    """
    declared = _Declaring(connection)
    things: list[Exchange | Queue] = [*topology.exchanges, *topology.queues]
    try:
        different = [
            difference
            for thing in things
            if (difference := await declared.declare(thing)).state == "different"
        ]
        for binding in topology.bindings:
            await declared.bind(binding)
    finally:
        await declared.close()
    if different:
        raise TopologyMismatchError(different)
    if declared.forbidden:
        log.info(
            "not allowed to declare, using the topology as it is",
            connection=connection.name,
            objects=sorted(declared.forbidden),
        )
    if declared.unbound:
        log.warning(
            "not allowed to bind: new topics arrive only once someone who may runs "
            "`evworker topology apply`",
            connection=connection.name,
            bindings=sorted(declared.unbound),
        )
    return declared.forbidden


async def diff_topology(connection: Connection, topology: Topology) -> list[Difference]:
    """Compare exchanges and queues with the broker's, changing nothing.

    Bindings are left out: AMQP has no way to list them.
    """
    declared = _Declaring(connection)
    things: list[Exchange | Queue] = [*topology.exchanges, *topology.queues]
    differences = []
    try:
        for thing in things:
            difference = await declared.look(thing)
            if difference.state == "same":
                # It exists, so declaring it can only be confirmed or refused.
                difference = await declared.declare(thing)
            differences.append(difference)
    finally:
        await declared.close()
    return differences


class _Declaring:
    """Declarations one after the other, on a new channel whenever the broker closed one."""

    def __init__(self, connection: Connection) -> None:
        self.forbidden: set[str] = set()
        self.unbound: set[str] = set()
        self._connection = connection
        self._channel: AbstractChannel | None = None

    async def close(self) -> None:
        if self._channel is not None:
            await close_channel(self._channel)

    async def look(self, thing: Exchange | Queue) -> Difference:
        """Whether it is there at all, as "same" or "missing"."""
        return await self._ask(thing, passive=True)

    async def declare(self, thing: Exchange | Queue) -> Difference:
        return await self._ask(thing, passive=False)

    async def bind(self, binding: Binding) -> None:
        with broker_errors(f"bind queue {binding.queue!r}"):
            await self._bind(binding)

    async def _bind(self, binding: Binding) -> None:
        channel = await self._open_channel()
        try:
            await channel.queue_bind(
                binding.queue, binding.exchange, binding.pattern, timeout=RPC_TIMEOUT_S
            )
        except aiormq.exceptions.ChannelAccessRefused:
            self.unbound.add(f"{binding.pattern} → {binding.queue}")
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise BrokerError(
                f"can't bind queue {binding.queue!r} to {binding.exchange!r}: {error}. "
                "Someone with the right to configure must run `evworker topology apply` first"
            ) from error

    async def _ask(self, thing: Exchange | Queue, *, passive: bool) -> Difference:
        kind: Literal["exchange", "queue"] = "queue" if isinstance(thing, Queue) else "exchange"
        with broker_errors(f"declare {kind} {thing.name!r}"):
            return await self._asked(kind, thing, passive=passive)

    async def _asked(
        self, kind: Literal["exchange", "queue"], thing: Exchange | Queue, *, passive: bool
    ) -> Difference:
        channel = await self._open_channel()
        try:
            if isinstance(thing, Queue):
                await channel.queue_declare(
                    thing.name,
                    durable=True,
                    passive=passive,
                    arguments=dict(thing.arguments),
                    timeout=RPC_TIMEOUT_S,
                )
            else:
                await channel.exchange_declare(
                    thing.name,
                    exchange_type=thing.kind,
                    durable=True,
                    passive=passive,
                    arguments=dict(thing.arguments),
                    timeout=RPC_TIMEOUT_S,
                )
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            return _explained(kind, thing, str(error))
        except aiormq.exceptions.ChannelNotFoundEntity:
            return Difference(kind, thing.name, "missing")
        except aiormq.exceptions.ChannelAccessRefused:
            self.forbidden.add(thing.name)
            return Difference(kind, thing.name, "forbidden")
        return Difference(kind, thing.name, "same")

    async def _open_channel(self) -> AbstractChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel()
        return self._channel


def _explained(
    kind: Literal["exchange", "queue"], thing: Exchange | Queue, text: str
) -> Difference:
    told = _INEQUIVALENT.search(text)
    if told is None:
        return Difference(
            kind, thing.name, "different", "definition", "as planned", text, _advice(kind, thing)
        )
    return Difference(
        kind,
        thing.name,
        "different",
        told["argument"],
        _value(told["expected"]),
        _value(told["found"]),
        _advice(kind, thing),
    )


def _value(text: str) -> str:
    value = _VALUE.search(text)
    return value["value"] if value else text.strip()


def _advice(kind: str, thing: Exchange | Queue) -> str:
    if kind == "exchange":
        return (
            "An exchange's definition can't be changed: name another one with --exchange, "
            "or delete this one while nothing publishes to it, and run `evworker topology apply`."
        )
    # The queues beside a work queue are named after it, and move with it.
    queue = thing.name.partition(".retry.")[0].removesuffix(".dlq").removesuffix(".quarantine")
    return (
        "A queue's definition can't be changed: "
        f'consume from a new name (queue="{queue}.v2"), '
        "keep the old consumer until the old queues are empty, then unbind and delete them."
    )
