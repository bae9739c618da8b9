"""The outbox as a producer sees it: an event is added to a transaction, and shares its fate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from evworker.broker.durations import Duration
from evworker.broker.envelope import Envelope
from evworker.broker.event import Event
from evworker.broker.headers import Scalar
from evworker.broker.outbox.row import Schedule, rows_of
from evworker.broker.outbox.session import write, write_sync

if TYPE_CHECKING:
    from evworker.broker.outbox.session import AnySession, AnySyncSession

E = TypeVar("E", bound=Event)


class Outbox:
    """Adds events to a transaction of yours; a relay publishes them once it has committed.

    >>> outbox = Outbox(source="shop")
    >>> async with sessions.begin() as session:  # doctest: +SKIP
    ...     session.add(Order(id="42"))
    ...     await outbox.add(session, OrderPlaced(order_id="42"), key="customer-7")

    What the transaction takes back was never written. A session is SQLAlchemy's AsyncSession,
    Session, AsyncConnection or Connection on PostgreSQL, MariaDB, MySQL or SQLite; or a connection
    of asyncpg or of psycopg, in a transaction.

    Events of one key are published in the order in which they were added, which is that of the
    commits only if the transactions of that key wait for each other: lock the row that the key
    stands for (`SELECT … FOR UPDATE` of the customer) before adding.

    An outbox holds no connection and no state; one is enough for a program. `source` says in each
    envelope who published.
    """

    def __init__(self, *, source: str = "evworker") -> None:
        self.source = source

    async def add(  # noqa: PLR0913 - what can be said of a publish, and when
        self,
        session: AnySession,
        event: Event,
        *,
        key: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        headers: Mapping[str, Scalar] | None = None,
        id: str | None = None,
        cause: Envelope | None = None,
    ) -> Envelope:
        """Add an event to the session's transaction; returns the envelope that will be published.

        `key`, `priority`, `headers`, `id` and `cause` are those of `Publisher.publish`. `delay` is
        counted from now by the database's clock; `at` is a moment with its time zone, and one that
        has passed means at once. The two exclude each other.

        Raises TransactionError without a transaction, SchemaError without evworker's tables,
        DatabaseUnreachableError, InvalidEventError for a value that JSON can't hold, and
        HeadersError for what AMQP can't carry.
        """
        envelope = Envelope.wrap(event, source=self.source, id=id, key=key, cause=cause)
        schedule = Schedule.of(delay, at)
        await write(session, rows_of([envelope], priority, headers), schedule)
        return envelope

    async def add_many(
        self,
        session: AnySession,
        events: Iterable[E],
        *,
        key: str | Callable[[E], str | None] | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        headers: Mapping[str, Scalar] | None = None,
        cause: Envelope | None = None,
    ) -> list[Envelope]:
        """Add events in this order, in one round trip; returns their envelopes.

        All of them or none. A callable `key` gets each event and returns its key. Raises as `add`
        does.
        """
        envelopes = self._wrapped(events, key, cause)
        await self.add_envelopes(
            session, envelopes, priority=priority, delay=delay, at=at, headers=headers
        )
        return envelopes

    async def add_envelopes(
        self,
        session: AnySession,
        envelopes: Iterable[Envelope],
        *,
        priority: int | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        headers: Mapping[str, Scalar] | None = None,
    ) -> None:
        """Add what is already in its envelope, in one round trip. Raises as `add` does."""
        schedule = Schedule.of(delay, at)
        if rows := rows_of(envelopes, priority, headers):
            await write(session, rows, schedule)

    def add_sync(  # noqa: PLR0913 - as add
        self,
        session: AnySyncSession,
        event: Event,
        *,
        key: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        headers: Mapping[str, Scalar] | None = None,
        id: str | None = None,
        cause: Envelope | None = None,
    ) -> Envelope:
        """`add` for a program without asyncio: its Session, Connection or psycopg.Connection."""
        envelope = Envelope.wrap(event, source=self.source, id=id, key=key, cause=cause)
        schedule = Schedule.of(delay, at)
        write_sync(session, rows_of([envelope], priority, headers), schedule)
        return envelope

    def add_many_sync(
        self,
        session: AnySyncSession,
        events: Iterable[E],
        *,
        key: str | Callable[[E], str | None] | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
        headers: Mapping[str, Scalar] | None = None,
        cause: Envelope | None = None,
    ) -> list[Envelope]:
        """`add_many` for a program without asyncio."""
        schedule = Schedule.of(delay, at)
        envelopes = self._wrapped(events, key, cause)
        if rows := rows_of(envelopes, priority, headers):
            write_sync(session, rows, schedule)
        return envelopes

    def _wrapped(
        self,
        events: Iterable[E],
        key: str | Callable[[E], str | None] | None,
        cause: Envelope | None,
    ) -> list[Envelope]:
        return [
            Envelope.wrap(
                event, source=self.source, key=key(event) if callable(key) else key, cause=cause
            )
            for event in events
        ]
