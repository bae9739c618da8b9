"""Every error that evworker raises, and nothing else.

    EvworkerError
    ├── ConfigurationError          what you wrote can't work; nothing was started
    │   ├── BrokerUrlError
    │   ├── InvalidTopicError
    │   ├── DurationError
    │   ├── DatabaseUrlError
    │   └── ConsumerError           (plugins and consumers that contradict each other)
    ├── EventError                  this one message or event is at fault
    │   ├── UndecodableError
    │   └── InvalidEventError
    ├── DatabaseError               the database is away, or not as it should be
    │   ├── DatabaseUnreachableError    (also a ConnectionError)
    │   ├── DatabaseRefusedError
    │   ├── SchemaError                 evworker's tables are missing, or another version's
    │   └── TransactionError            nothing was written: there is no transaction to write it in
    └── BrokerError                 the broker is away, unwilling or full
        ├── BrokerUnreachableError
        ├── BrokerRefusedError
        ├── TopologyMismatchError
        ├── QueueNotFoundError
        └── PublishError
            ├── PublishTimeoutError     may be stored or not: publish again with the same id
            ├── PublishNackedError      not stored
            ├── UnroutableError         not stored
            ├── ConnectionLostError     may be stored or not: publish again with the same id
            ├── MessageTooLargeError    not stored
            ├── HeadersError            not stored
            └── PublishManyError        which of many are stored, and which may not be

Each message says what happened, why, and what to do next; it never holds a password. Errors of the
libraries underneath are kept as ``__cause__``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evworker.broker.declare import Difference
    from evworker.broker.envelope import Envelope


class EvworkerError(Exception):
    """The root of all errors raised by evworker."""


class ConfigurationError(EvworkerError):
    """What was written down can't work. Raised before anything is started."""


class BrokerUrlError(ConfigurationError):
    """A broker URL that can't be read."""


class InvalidTopicError(ConfigurationError, ValueError):
    """A topic or a topic pattern that RabbitMQ would not match as its author meant."""


class DurationError(ConfigurationError, ValueError):
    """A duration that can't be read, such as ``"5 minuets"``."""


class DatabaseUrlError(ConfigurationError):
    """A database URL that can't be read, or whose driver is not installed."""


class ConsumerError(ConfigurationError):
    """A plugin or a consumer is declared in a way that can't work."""


class EventError(EvworkerError):
    """One message or one event is at fault; others are not concerned."""


class UndecodableError(EventError):
    """The bytes of a message can't be read as an event at all."""


class InvalidEventError(EventError):
    """The event was read, but it is not what its type promises."""


class DatabaseError(EvworkerError):
    """The database is away, or not as it should be."""


class DatabaseUnreachableError(DatabaseError, ConnectionError):
    """The database does not answer, or the connection to it was lost.

    A ConnectionError, so that a consumer's kill switch waits for it as for any other dependency.
    """


class DatabaseRefusedError(DatabaseError):
    """The database answered and said no: user, password, or a database that is not there.

    Trying again won't help, so nothing of evworker does.
    """


class SchemaError(DatabaseError):
    """evworker's tables are missing, or were made by another version of it."""


class TransactionError(DatabaseError):
    """There is no transaction to write into, so that nothing could be taken back."""


class BrokerError(EvworkerError):
    """The broker is away, unwilling or full."""


class BrokerUnreachableError(BrokerError):
    """No host of the broker's address answered."""


class BrokerRefusedError(BrokerError):
    """The broker answered and said no: user, password, virtual host or certificate.

    Trying again won't help, so nothing of evworker does.
    """


class TopologyMismatchError(BrokerError):
    """Exchanges or queues exist on the broker with another definition than the one asked for."""

    def __init__(self, differences: list[Difference]) -> None:
        self.differences = differences
        lines = [f"  {difference}" for difference in differences]
        lines += dict.fromkeys(difference.advice for difference in differences)
        text = "\n".join(lines)
        super().__init__(f"the broker has other definitions than these consumers need:\n{text}")


class QueueNotFoundError(BrokerError):
    """There is no such queue on the broker."""


class PublishError(BrokerError):
    """An event was not confirmed. The subclass says whether the broker may have it."""


class PublishTimeoutError(PublishError):
    """No confirm came before the deadline. The broker may or may not have the event.

    Publishing again with the same ``id`` is safe for consumers that keep an inbox.
    """


class PublishNackedError(PublishError):
    """The broker said that it did not take the event: a queue is full, or it failed inside."""


class UnroutableError(PublishError):
    """No queue is bound for the event's topic and the exchange has nowhere to keep it."""


class ConnectionLostError(PublishError):
    """The connection or channel died before the confirm. The broker may or may not have it."""


class MessageTooLargeError(PublishError):
    """The encoded event is larger than the broker takes. Nothing was sent."""


class HeadersError(PublishError):
    """Headers that AMQP can't carry, or more of them than fit. Nothing was sent."""


class PublishManyError(PublishError):
    """Not all of many events were confirmed. Those that are in neither list were never sent.

    `confirmed` are the envelopes that the broker has, in the order of their sending. `failed` are
    those that were not confirmed, each with its error, whose class says whether the broker may have
    it all the same; publishing such an envelope again, as it is, keeps its id. The two together are
    a beginning of what was to be published. The cause is the first failure, or what was raised by
    the iterable or by an event that can't be written as JSON.
    """

    def __init__(
        self,
        confirmed: list[Envelope],
        failed: list[tuple[Envelope, EvworkerError]],
        why: Exception,
    ) -> None:
        self.confirmed = confirmed
        self.failed = failed
        super().__init__(
            f"{len(confirmed):,} events are confirmed, {len(failed):,} are not, and none was sent "
            f"after them: {why}"
        )
