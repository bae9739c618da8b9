"""Adding: what a transaction commits is in the outbox, what it takes back is not."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import Envelope, Outbox
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.headers import Scalar
from evworker.broker.outbox.row import decoded_headers
from tests.broker.events import Blob, OrderPlaced
from tests.broker.outbox.sessions import (
    ASYNC_OF_POSTGRESQL,
    ASYNC_OF_SQLALCHEMY,
    SYNC_OF_POSTGRESQL,
    SYNC_OF_SQLALCHEMY,
    InTransaction,
    in_async_session,
    rows_in,
)

outbox = Outbox(source="shop")


class TakenBackError(Exception):
    """What a test raises in the middle of a transaction."""


def orders(count: int) -> list[OrderPlaced]:
    return [OrderPlaced(order_id=str(number)) for number in range(count)]


async def add_and_take_back(in_transaction: InTransaction, url: str, engine: AsyncEngine) -> None:
    with suppress(TakenBackError):
        async with in_transaction(url) as session:
            await outbox.add(session, OrderPlaced(order_id="never"), key="k")
            await outbox.add_many(session, orders(3), key="k")
            raise TakenBackError
    assert await rows_in(engine) == []

    async with in_transaction(url) as session:
        first = await outbox.add(session, OrderPlaced(order_id="first"), key="k", priority=5)
        several = await outbox.add_many(session, orders(3), key=lambda _: None)
    rows = await rows_in(engine)
    assert [row["event_id"] for row in rows] == [first.id, *(each.id for each in several)]
    assert [row["key"] for row in rows] == ["k", None, None, None]
    assert [row["priority"] for row in rows] == [5, None, None, None]
    assert {row["state"] for row in rows} == {"ready"}
    assert [row["body"] for row in rows] == [each.encode() for each in [first, *several]]


@pytest.mark.parametrize("in_transaction", ASYNC_OF_SQLALCHEMY + SYNC_OF_SQLALCHEMY)
async def test_an_event_shares_the_fate_of_its_transaction(
    engine: AsyncEngine, database_url: str, in_transaction: InTransaction
) -> None:
    await add_and_take_back(in_transaction, database_url, engine)


@pytest.mark.parametrize("in_transaction", ASYNC_OF_POSTGRESQL + SYNC_OF_POSTGRESQL)
async def test_an_event_shares_the_fate_of_a_drivers_transaction(
    postgres_url: str, in_transaction: InTransaction
) -> None:
    engine = open_engine(postgres_url)
    await make_tables(engine)
    await add_and_take_back(in_transaction, postgres_url, engine)
    await engine.dispose()


async def add_synchronously(in_transaction: InTransaction, url: str, engine: AsyncEngine) -> None:
    async with in_transaction(url) as session:
        first = outbox.add_sync(session, OrderPlaced(order_id="first"), delay="1m")
        several = outbox.add_many_sync(session, orders(3), key="k", headers={"tenant": "acme"})
    rows = await rows_in(engine)
    assert [row["event_id"] for row in rows] == [first.id, *(each.id for each in several)]
    assert [row["state"] for row in rows] == ["waiting", "ready", "ready", "ready"]


@pytest.mark.parametrize("in_transaction", SYNC_OF_SQLALCHEMY)
async def test_a_program_without_asyncio_adds_too(
    engine: AsyncEngine, database_url: str, in_transaction: InTransaction
) -> None:
    await add_synchronously(in_transaction, database_url, engine)


@pytest.mark.parametrize("in_transaction", SYNC_OF_POSTGRESQL)
async def test_a_program_without_asyncio_adds_by_a_driver_too(
    postgres_url: str, in_transaction: InTransaction
) -> None:
    engine = open_engine(postgres_url)
    await make_tables(engine)
    await add_synchronously(in_transaction, postgres_url, engine)
    await engine.dispose()


async def test_a_row_holds_the_envelope_as_it_goes_onto_the_wire(
    engine: AsyncEngine, database_url: str
) -> None:
    cause = Envelope.wrap(OrderPlaced(order_id="0"), source="elsewhere")
    headers: dict[str, Scalar] = {"tenant": "acme", "rate": 1.5, "none": None}
    adjusted: dict[str, Scalar] = {"far": float("inf"), "big": 2**70}
    async with in_async_session(database_url) as session:
        added = await outbox.add(
            session,
            OrderPlaced(order_id="Zoë's ☃", total=Decimal("0.10")),
            key="customer's \\ %s :x $1",
            id="an id",
            headers=headers | adjusted,
            cause=cause,
        )
    (row,) = await rows_in(engine)
    read = Envelope.parse(row["body"])
    assert read == added
    assert (read.id, read.source, read.topic) == ("an id", "shop", "orders.placed")
    assert (row["event_id"], row["topic"], row["key"]) == (read.id, read.topic, read.key)
    assert (read.correlation_id, read.causation_id) == (cause.id, cause.id)
    assert read.decode(OrderPlaced).total == Decimal("0.10")
    assert decoded_headers(row["headers"]) == {**headers, "far": "inf", "big": str(2**70)}
    assert (row["attempts"], row["claim"], row["due_at"]) == (0, None, None)


async def test_a_delay_is_counted_by_the_databases_clock(
    engine: AsyncEngine, database_url: str
) -> None:
    async with in_async_session(database_url) as session:
        await outbox.add(session, OrderPlaced(order_id="1"), delay="90s")
        await outbox.add_many(session, orders(2), delay=timedelta(seconds=90))
    rows = await rows_in(engine)
    assert [row["state"] for row in rows] == ["waiting"] * 3
    waits = {row["due_at"] - row["created_at"] for row in rows}
    assert waits == {timedelta(seconds=90)}


async def test_a_moment_is_the_same_in_every_time_zone(
    engine: AsyncEngine, database_url: str
) -> None:
    moment = datetime(2031, 5, 17, 9, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5)))
    async with in_async_session(database_url) as session:
        await outbox.add(session, OrderPlaced(order_id="1"), at=moment)
        await outbox.add_many(session, orders(2), at=moment)
    rows = await rows_in(engine)
    assert [(row["state"], row["due_at"]) for row in rows] == [("waiting", moment)] * 3


@pytest.mark.parametrize("in_transaction", ASYNC_OF_POSTGRESQL + SYNC_OF_POSTGRESQL)
async def test_drivers_take_delays_and_moments(
    postgres_url: str, in_transaction: InTransaction
) -> None:
    engine = open_engine(postgres_url)
    await make_tables(engine)
    moment = datetime(2031, 5, 17, tzinfo=UTC)
    async with in_transaction(postgres_url) as session:
        for schedule in ({"delay": 90.0}, {"at": moment}):
            await outbox.add(session, OrderPlaced(order_id="1"), headers={"n": 1}, **schedule)
            await outbox.add_many(session, orders(2), headers={"n": 1}, priority=2, **schedule)
    rows = await rows_in(engine)
    assert [row["due_at"] - row["created_at"] for row in rows[:3]] == [timedelta(seconds=90)] * 3
    assert [row["due_at"] for row in rows[3:]] == [moment] * 3
    assert [row["headers"] for row in rows] == [b'{"n":1}'] * 6
    assert [row["priority"] for row in rows] == [None, 2, 2] * 2
    await engine.dispose()


async def test_many_keep_their_order_however_many(engine: AsyncEngine, database_url: str) -> None:
    count = 12_000  # more parameters than any protocol has places for, if each had its own
    async with in_async_session(database_url) as session:
        added = await outbox.add_many(session, orders(count), key=lambda event: event.order_id)
    rows = await rows_in(engine)
    assert [row["event_id"] for row in rows] == [each.id for each in added]
    assert [row["key"] for row in rows] == [str(number) for number in range(count)]


async def test_large_events_are_taken_many_at_once(engine: AsyncEngine, database_url: str) -> None:
    blobs = [Blob(content=letter * 3_000_000) for letter in "abcdef"]
    async with in_async_session(database_url) as session:
        added = await outbox.add_many(session, blobs)
    assert [row["body"] for row in await rows_in(engine)] == [each.encode() for each in added]


async def test_no_events_are_no_statement(engine: AsyncEngine, database_url: str) -> None:
    async with in_async_session(database_url) as session:
        assert await outbox.add_many(session, []) == []
    assert await rows_in(engine) == []


async def test_envelopes_are_added_as_they_are(engine: AsyncEngine, database_url: str) -> None:
    envelopes = [Envelope.wrap(event, source="files", key="k") for event in orders(2)]
    async with in_async_session(database_url) as session:
        await outbox.add_envelopes(session, envelopes, headers={"n": 1})
    rows = await rows_in(engine)
    assert [Envelope.parse(row["body"]) for row in rows] == envelopes


async def test_a_savepoint_that_is_taken_back_takes_its_events_along(
    engine: AsyncEngine, database_url: str
) -> None:
    async with in_async_session(database_url) as session:
        kept = await outbox.add(session, OrderPlaced(order_id="kept"))
        with suppress(TakenBackError):
            async with session.begin_nested():
                await outbox.add(session, OrderPlaced(order_id="taken back"))
                raise TakenBackError
    assert [row["event_id"] for row in await rows_in(engine)] == [kept.id]
