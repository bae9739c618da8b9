"""What `evworker doctor` has seen of a broker, and what it makes of that: two kinds of values."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from evworker.broker.topology import quarantine_queue, unrouted_exchange

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from evworker.broker import BrokerAddress, BrokerVersion, Difference, Topology
    from evworker.broker.errors import DatabaseError
    from evworker.broker.inspection import QueueCounts, Refusal
    from evworker.broker.outbox.operating import OutboxStatus
    from evworker.workers.consumer import Consumer

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")

Check = Literal[
    "version",
    "address",
    "alarm",
    "topology",
    "dead-lettering",
    "delivery-limit",
    "unrouted",
    "dead-letters",
    "permissions",
    "ack-timeout",
    "prefetch",
    "priorities",
    "shared-queue",
    "database",
    "outbox",
    "inbox",
    "unseen",
]

Role = Literal["exchange", "unrouted", "work", "quarantine", "retry", "dead letters"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `level` is "problem" where a promise of evworker's can't be kept, "warning" where it hangs by a
    setting that is seldom meant, "note" for what is worth knowing, and "ok".
    """

    level: Level
    check: Check
    """What was looked at; the words stay the same from version to version."""
    subject: str
    """Whose it is: the name of an exchange, a queue, a consumer, or the broker's address."""
    found: str
    fix: str = ""
    """What to type or to change; empty where there is nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSeen:
    """A database that was looked at: how its outbox stands, or what is wrong with it."""

    address: str
    outbox: OutboxStatus | None = None
    fault: DatabaseError | None = None


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All that was gathered, so that what follows from it is a pure function."""

    address: BrokerAddress
    version: BrokerVersion
    exchange: str
    plan: Topology
    consumers: Mapping[str, tuple[Consumer, ...]]
    """By queue."""
    differences: tuple[Difference, ...]
    """Of each exchange and queue of the plan; of a queue that differs, one for each argument."""
    counts: Mapping[str, QueueCounts]
    """Of the queues that are there and may be looked at."""
    refusals: tuple[Refusal, ...]
    takes_messages: bool
    """Whether the broker reads what is published; short of memory or disk space it does not."""
    ack_timeout_s: float | None
    """What the broker's consumer_timeout is said to be; None where it has none."""
    database: DatabaseSeen | None = None
    """None where none was named."""
    inbox_window_s: float = 0.0
    """How long the workers' inboxes are said to remember."""
    oldest_letters: Mapping[str, datetime] = field(default_factory=dict)
    """When the oldest letter died, of the dead-letter queues of transactional consumers."""

    @cached_property
    def states(self) -> dict[tuple[str, str], str]:
        """How each exchange and queue compares with the plan, by kind and name."""
        return {(one.kind, one.name): one.state for one in self.differences}

    def role_of(self, name: str) -> Role:
        """What an exchange or a queue of the plan is there for."""
        if name == self.exchange:
            return "exchange"
        if name == unrouted_exchange(self.exchange):
            return "unrouted"
        if name in self.consumers:
            return "work"
        if name in map(quarantine_queue, self.consumers):
            return "quarantine"
        if any(name.startswith(f"{queue}.retry.") for queue in self.consumers):
            return "retry"
        return "dead letters"
