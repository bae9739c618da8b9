"""What a handler is given beside its event."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import structlog

from evworker.broker import Envelope, TransactionError
from evworker.broker.failure import ATTEMPT_HEADER, failed_attempts

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from sqlalchemy.ext.asyncio import AsyncSession

    from evworker.broker import Event, Publisher
    from evworker.broker.delivery import Delivery
    from evworker.workers.consumer import Consumer
    from evworker.workers.transaction import Transaction


class Context:
    """One delivery, as its handler sees it."""

    __slots__ = (
        "_consumer",
        "_delivery",
        "_loop",
        "_publisher",
        "envelope",
        "state",
        "transaction",
    )

    envelope: Envelope
    """The event's envelope: id, topic, time, key, correlation and causation."""
    state: Any  # whatever the user's own lifespan yielded
    """What the plugin's lifespan yielded; None without one."""
    transaction: Transaction | None
    """The attempt's transaction, of a transactional consumer; handlers use `session`."""

    def __init__(
        self,
        consumer: Consumer,
        envelope: Envelope,
        delivery: Delivery,
        *,
        state: Any,
        publisher: Publisher,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._consumer = consumer
        self._delivery = delivery
        self._publisher = publisher
        self._loop = loop
        self.envelope = envelope
        self.state = state
        self.transaction = None

    @property
    def consumer(self) -> str:
        """The consumer's name."""
        return self._consumer.name

    @property
    def queue(self) -> str:
        """The queue that the event came from."""
        return self._consumer.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1. Attempts that ended with a crash are not counted here."""
        return failed_attempts(self._delivery.header(ATTEMPT_HEADER)) + 1

    @property
    def headers(self) -> Mapping[str, object]:
        """The AMQP headers of the message, evworker's own included."""
        return self._delivery.headers

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered this message before and was left without an answer."""
        return self._delivery.redelivered

    @property
    def session(self) -> AsyncSession:
        """The transaction of this attempt; it is committed when the handler returns.

        Commit is the worker's alone, and raises TransactionError here. A part may be rolled back
        with ``async with ctx.session.begin_nested()``. Raises TransactionError where the consumer
        is not transactional.
        """
        if self.transaction is None:
            raise TransactionError(
                f"consumer {self.consumer!r} has no transaction; "
                "declare it with transactional=True, and give the worker a database"
            )
        return self.transaction.session

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this event in this consumer, retries and replays included.

        For services that take such a key, so that what is asked for twice is done once.
        """
        return f"{self.consumer}:{self.envelope.id}"

    @property
    def log(self) -> structlog.typing.FilteringBoundLogger:
        """A structlog logger that names this delivery on each of its lines."""
        logger: structlog.typing.FilteringBoundLogger = structlog.get_logger("evworker.handler")
        return logger.bind(**self.log_fields())

    def log_fields(self) -> dict[str, str | int]:
        """What every log line of this delivery carries."""
        return {
            "event_id": self.envelope.id,
            "topic": self.envelope.topic,
            "consumer": self._consumer.name,
            "queue": self._consumer.queue,
            "attempt": self.attempt,
        }

    async def publish(
        self,
        event: Event,
        *,
        key: str | None = None,
        priority: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> Envelope:
        """Publish an event caused by this one; returns once the broker has it.

        It is sent at once: if the handler fails afterwards, the next attempt publishes it again.
        Raises as `Publisher.publish` does.

        In a transactional consumer it is written into the outbox instead, and sent if and only if
        the transaction commits. Raises as `Outbox.add` does.
        """
        if self.transaction is not None:
            return await self.transaction.publish(
                event, cause=self.envelope, key=key, priority=priority, id=id, headers=headers
            )
        envelope = Envelope.wrap(
            event, source=self._consumer.plugin, id=id, key=key, cause=self.envelope
        )
        await self._publisher.publish_envelope(envelope, priority=priority, headers=headers)
        return envelope

    def publish_sync(
        self,
        event: Event,
        *,
        key: str | None = None,
        priority: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> Envelope:
        """`publish` for handlers that are plain functions; it blocks the thread it is called in."""
        if _is_running(self._loop):
            raise RuntimeError(
                "publish_sync would wait for the event loop that it blocks; "
                "await ctx.publish() instead"
            )
        publishing = self.publish(event, key=key, priority=priority, id=id, headers=headers)
        return asyncio.run_coroutine_threadsafe(publishing, self._loop).result()


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False  # called in a thread, as it should be


current_context: ContextVar[Context | None] = ContextVar("evworker_context", default=None)


def delivery_log_fields(
    _logger: object, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: names the running delivery on every line logged while it runs.

    Lines of libraries and of the handler's own loggers are named as well, since the delivery is
    found by its context and not by its logger.
    """
    context = current_context.get()
    if context is not None:
        for name, value in context.log_fields().items():
            event_dict.setdefault(name, value)
    return event_dict
