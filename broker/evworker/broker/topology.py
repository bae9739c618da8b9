"""Exchanges, queues and bindings as values: a pure plan of what consumers need.

::

    events (topic) ──pattern──► <queue> ──limit──► <queue>.dlq
       └─ unrouted ► events.unrouted   ▲
                           <queue>.retry.<delay>, <queue>.quarantine

`declare` makes a plan so; nothing here talks to a broker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from evworker.broker.durations import format_duration
from evworker.broker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evworker.broker.version import BrokerVersion

T = TypeVar("T")

DEFAULT_EXCHANGE = "events"

WORK_DELIVERY_LIMIT = 100
"""How often one message may come back before the broker dead-letters it as one that kills workers.

It must be explicit and positive: 4.0 and later default to 20, count every hand-back on 4.0 to 4.2,
and drop the message if there is no dead-letter exchange; -1 loses it at its first return on 3.x
(https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
"""

KEPT_DELIVERY_LIMIT = 1_000_000_000
"""For queues that are only browsed: looking, however often, must not cost a letter its place."""

UNROUTED_KEPT = 100_000
"""How many unrouted events are kept; the oldest go first."""

_LONGEST_NAME = 255  # an AMQP short string


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: str
    arguments: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue."""

    name: str
    arguments: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Binding:
    """Events of the exchange whose topic matches the pattern go to the queue."""

    queue: str
    exchange: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Topology:
    """What has to be there on the broker, in the order in which it can be declared."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()

    def __add__(self, other: Topology) -> Topology:
        return Topology(
            _merged(self.exchanges, other.exchanges),
            _merged(self.queues, other.queues),
            _merged(self.bindings, other.bindings),
        )


def _merged(one: tuple[T, ...], other: tuple[T, ...]) -> tuple[T, ...]:
    return one + tuple(thing for thing in other if thing not in one)


def dead_letter_queue(queue: str) -> str:
    """The name of the queue that holds another's dead letters; these and the unrouted have none."""
    return queue if queue.endswith((".dlq", ".unrouted")) else f"{queue}.dlq"


def retry_queue(queue: str, delay_s: float) -> str:
    """The name of the queue in which a failed message waits for so long."""
    return f"{queue}.retry.{format_duration(delay_s)}"


def quarantine_queue(queue: str) -> str:
    """The name of the queue from which suspected killers of workers are run one at a time."""
    return f"{queue}.quarantine"


def unrouted_exchange(exchange: str) -> str:
    """The name of the alternate exchange, and of its queue, for events that nobody is bound to."""
    return f"{exchange}.unrouted"


def events_topology(exchange: str = DEFAULT_EXCHANGE) -> Topology:
    """The topic exchange that everything is published to, and what catches the unrouted."""
    unrouted = unrouted_exchange(exchange)
    return Topology(
        exchanges=(
            Exchange(unrouted, "fanout", {}),
            # https://www.rabbitmq.com/docs/ae
            Exchange(exchange, "topic", {"alternate-exchange": unrouted}),
        ),
        queues=(
            Queue(
                unrouted,
                {
                    "x-queue-type": "quorum",
                    "x-max-length": UNROUTED_KEPT,
                    "x-overflow": "drop-head",
                    "x-delivery-limit": KEPT_DELIVERY_LIMIT,
                },
            ),
        ),
        bindings=(Binding(unrouted, unrouted, "#"),),
    )


def queue_topology(
    name: str,
    *,
    exchange: str,
    patterns: Iterable[str],
    delays_s: Iterable[float],
    priorities: int | None,
    version: BrokerVersion,
) -> Topology:
    """A work queue with its bindings, its quarantine, its retry queues and its dead-letter queue.

    Raises ConfigurationError for a name that the broker would refuse.
    """
    waiting = tuple(retry_queue_of(name, delay_s) for delay_s in sorted(set(delays_s)))
    queues = (
        Queue(
            dead_letter_queue(name),
            {"x-queue-type": "quorum", "x-delivery-limit": KEPT_DELIVERY_LIMIT},
        ),
        Queue(name, _work_arguments(name, priorities, version)),
        # A quorum queue whatever the work queue is: it counts how often each message came back.
        Queue(quarantine_queue(name), _work_arguments(name, None, version)),
        *waiting,
    )
    for queue in queues:
        _check_name(queue.name)
    return Topology(
        queues=queues, bindings=tuple(Binding(name, exchange, pattern) for pattern in patterns)
    )


def retry_queue_of(queue: str, delay_s: float) -> Queue:
    """The queue in which failed messages of `queue` wait for `delay_s` seconds.

    Its time to live is the queue's and not the message's: a short one would wait behind a long one
    (https://www.rabbitmq.com/docs/ttl#per-message-ttl-caveats). It never expires itself: an expired
    queue takes its messages with it.
    """
    return Queue(
        retry_queue(queue, delay_s),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": round(delay_s * 1_000),
            "x-delivery-limit": KEPT_DELIVERY_LIMIT,
            **_dead_letters_to(queue),
        },
    )


def _work_arguments(
    name: str, priorities: int | None, version: BrokerVersion
) -> dict[str, str | int]:
    dead_letters = _dead_letters_to(dead_letter_queue(name))
    if priorities is not None and not version.has_quorum_priorities:
        # Classic queues know neither a delivery limit nor at-least-once dead-lettering; asking for
        # either is refused with a 406.
        del dead_letters["x-dead-letter-strategy"]
        return {"x-queue-type": "classic", "x-max-priority": priorities, **dead_letters}
    return {"x-queue-type": "quorum", "x-delivery-limit": WORK_DELIVERY_LIMIT, **dead_letters}


def _dead_letters_to(queue: str) -> dict[str, str | int]:
    # The strategy "at-least-once" needs all three, and a quorum queue; the default strategy drops
    # the message when its target is missing (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def _check_name(name: str) -> None:
    if len(name.encode()) > _LONGEST_NAME:
        raise ConfigurationError(
            f"the queue name {name[:60]!r}… is longer than {_LONGEST_NAME} bytes"
        )
    if name.startswith("amq."):
        raise ConfigurationError(
            f"the queue name {name!r} begins with 'amq.', which the broker keeps for itself"
        )
