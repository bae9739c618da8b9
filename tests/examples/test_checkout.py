"""The shop's producer: an order and its event are committed together, and paid for once."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import Envelope, HeadersError
from evworker.broker.database.tables import outbox
from shop.billing import billing
from shop.checkout import orders, take
from shop.dashboard import dashboard
from shop.events import OrderLine, OrderPlaced
from shop.orders_from_csv import envelope, invoices
from shop.tables import Order, make_tables
from tests.conftest import Cleanup
from tests.examples.shop_of_a_test import open_shop
from tests.waiting import eventually

COLUMNS = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
DAY = f"""\
{COLUMNS}
536365,85123A,WHITE HANGING  HEART ,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom
536544,21773,DECORATIVE ROSE,1,2010-12-01 14:32:00,2.51,,United Kingdom
C536391,22556,PLASTERS IN TIN ,-12,2010-12-01 10:24:00,1.65,17548.0,United Kingdom
536414,22139,,56,2010-12-01 11:52:00,0.0,,United Kingdom
"""
PLACED = OrderPlaced(
    order_id="536365",
    customer_id="17850",
    country="United Kingdom",
    total=Decimal("15.30"),
    lines=(OrderLine("85123A", "T-light holder", 6, Decimal("2.55")),),
)


@pytest.fixture
async def database(engine: AsyncEngine) -> AsyncEngine:
    await make_tables(engine)
    return engine


async def written(database: AsyncEngine) -> tuple[list[tuple[str, Decimal]], list[Envelope]]:
    """The orders in the database, and the events in its outbox."""
    async with database.connect() as connection:
        rows = await connection.execute(select(Order.number, Order.total).order_by(Order.number))
        bodies = await connection.scalars(select(outbox.c.body).order_by(outbox.c.seq))
        return [(number, total) for number, total in rows], [
            Envelope.parse(body) for body in bodies
        ]


async def test_an_order_and_its_event_are_written_together_and_once(database: AsyncEngine) -> None:
    assert await take(database, PLACED, "e-1")
    assert not await take(database, PLACED, "e-1")
    rows, (event,) = await written(database)
    assert rows == [("536365", Decimal("15.30"))]
    assert (event.id, event.key) == ("e-1", "536365")
    assert event.decode(OrderPlaced) == PLACED


async def test_an_event_that_can_not_be_written_leaves_no_order(database: AsyncEngine) -> None:
    with pytest.raises(HeadersError, match="longer than 255"):
        await take(database, PLACED, "e" * 300)
    assert await written(database) == ([], [])


async def test_a_file_of_orders_is_paid_for_once_however_often_it_is_taken_or_published(
    broker_url: str,
    unique: str,
    cleanup: Cleanup,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    day = tmp_path / "day.csv"
    day.write_text(DAY)
    async with open_shop((billing, dashboard), broker_url, unique, cleanup) as running:
        for _ in range(2):
            taken = [await take(running.engine, *order) for order in orders(str(day))]
        assert taken == [False] * 3
        assert "invoice 536414: nothing has a price" in capsys.readouterr().err
        figures = running.states["dashboard"]
        await eventually(lambda: figures.payments and figures.refunds, "both are shown")
        # As `python -m shop.orders_from_csv day.csv | evworker publish --ndjson -` does.
        for invoice, lines in list(invoices(DAY.splitlines(), "day.csv"))[:1]:
            await running.publisher.publish_envelope(envelope(invoice, lines))
        await eventually(lambda: running.counts.duplicates == 1, "it is known by its id")
        paid = [("536365", Decimal("15.30")), ("C536391", Decimal("-19.80"))]
        assert await running.payments() == paid
        [letter] = await eventually(lambda: running.dead_letters("billing.charge"), "a dead letter")
        assert letter.failure.error_type == "shop.billing.NoCustomer"

        async def all_sent() -> bool:
            return (await written(running.engine))[1] == []

        await eventually(all_sent, "what was confirmed is removed")
        rows, _ = await written(running.engine)
        assert [number for number, _ in rows] == ["536365", "536544", "C536391"]
