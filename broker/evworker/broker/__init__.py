"""evworker's ground floor: events, and the broker. A program that only publishes needs no other.

What needs a database is loaded when it is first asked for, and SQLAlchemy with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from evworker.broker.address import BrokerAddress
from evworker.broker.connection import Connection
from evworker.broker.deadletters import (
    Condition,
    Death,
    Exported,
    Imported,
    Letter,
    LetterFilter,
    LetterGroup,
    Replay,
    Survey,
    browse_dead_letters,
    count_messages,
    edit_dead_letter,
    edited_envelope,
    export_dead_letters,
    group_dead_letters,
    import_dead_letters,
    origin_queue,
    parse_moment,
    purge_dead_letters,
    read_dead_letters,
    replay_dead_letters,
    survey_dead_letters,
)
from evworker.broker.declare import Difference, apply_topology, diff_topology
from evworker.broker.durations import Duration, format_duration, parse_duration
from evworker.broker.envelope import Envelope
from evworker.broker.errors import (
    BrokerError,
    BrokerRefusedError,
    BrokerUnreachableError,
    BrokerUrlError,
    ConfigurationError,
    ConnectionLostError,
    ConsumerError,
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnreachableError,
    DatabaseUrlError,
    DurationError,
    EventError,
    EvworkerError,
    HeadersError,
    InvalidEventError,
    InvalidTopicError,
    MessageTooLargeError,
    PublishError,
    PublishManyError,
    PublishNackedError,
    PublishTimeoutError,
    QueueNotFoundError,
    SchemaError,
    TopologyMismatchError,
    TransactionError,
    UndecodableError,
    UnroutableError,
)
from evworker.broker.event import Event
from evworker.broker.failure import Failure
from evworker.broker.publisher import Publisher
from evworker.broker.tap import Tapped, tap
from evworker.broker.topics import check_pattern, check_topic
from evworker.broker.topology import (
    Binding,
    Exchange,
    Queue,
    Topology,
    dead_letter_queue,
    events_topology,
)
from evworker.broker.version import BrokerVersion

if TYPE_CHECKING:
    from evworker.broker.outbox.operating import (
        DeadRow,
        Lease,
        OutboxStatus,
        RelayAtWork,
        dead_rows,
        discard_dead,
        outbox_status,
        retry_dead,
    )
    from evworker.broker.outbox.outbox import Outbox
    from evworker.broker.outbox.relay import Relay, Relayed

_NEEDS_A_DATABASE = {
    "DeadRow": "evworker.broker.outbox.operating",
    "Lease": "evworker.broker.outbox.operating",
    "Outbox": "evworker.broker.outbox.outbox",
    "OutboxStatus": "evworker.broker.outbox.operating",
    "Relay": "evworker.broker.outbox.relay",
    "RelayAtWork": "evworker.broker.outbox.operating",
    "Relayed": "evworker.broker.outbox.relay",
    "dead_rows": "evworker.broker.outbox.operating",
    "discard_dead": "evworker.broker.outbox.operating",
    "outbox_status": "evworker.broker.outbox.operating",
    "retry_dead": "evworker.broker.outbox.operating",
}

if not TYPE_CHECKING:  # or a name that is misspelt would be one of type Any

    def __getattr__(name: str) -> object:
        if name not in _NEEDS_A_DATABASE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            found = getattr(importlib.import_module(_NEEDS_A_DATABASE[name]), name)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(("sqlalchemy", "greenlet")):
                raise
            raise ImportError(
                f"{name} needs SQLAlchemy and a driver for your database: "
                "pip install 'evworker[postgres]', or evworker[mysql], or evworker[sqlite]"
            ) from error
        globals()[name] = found
        return found


__all__ = [
    "Binding",
    "BrokerAddress",
    "BrokerError",
    "BrokerRefusedError",
    "BrokerUnreachableError",
    "BrokerUrlError",
    "BrokerVersion",
    "Condition",
    "ConfigurationError",
    "Connection",
    "ConnectionLostError",
    "ConsumerError",
    "DatabaseError",
    "DatabaseRefusedError",
    "DatabaseUnreachableError",
    "DatabaseUrlError",
    "DeadRow",
    "Death",
    "Difference",
    "Duration",
    "DurationError",
    "Envelope",
    "Event",
    "EventError",
    "EvworkerError",
    "Exchange",
    "Exported",
    "Failure",
    "HeadersError",
    "Imported",
    "InvalidEventError",
    "InvalidTopicError",
    "Lease",
    "Letter",
    "LetterFilter",
    "LetterGroup",
    "MessageTooLargeError",
    "Outbox",
    "OutboxStatus",
    "PublishError",
    "PublishManyError",
    "PublishNackedError",
    "PublishTimeoutError",
    "Publisher",
    "Queue",
    "QueueNotFoundError",
    "Relay",
    "RelayAtWork",
    "Relayed",
    "Replay",
    "SchemaError",
    "Survey",
    "Tapped",
    "Topology",
    "TopologyMismatchError",
    "TransactionError",
    "UndecodableError",
    "UnroutableError",
    "apply_topology",
    "browse_dead_letters",
    "check_pattern",
    "check_topic",
    "count_messages",
    "dead_letter_queue",
    "dead_rows",
    "diff_topology",
    "discard_dead",
    "edit_dead_letter",
    "edited_envelope",
    "events_topology",
    "export_dead_letters",
    "format_duration",
    "group_dead_letters",
    "import_dead_letters",
    "origin_queue",
    "outbox_status",
    "parse_duration",
    "parse_moment",
    "purge_dead_letters",
    "read_dead_letters",
    "replay_dead_letters",
    "retry_dead",
    "survey_dead_letters",
    "tap",
]
