"""The shop's billing on a real broker; what each plugin does is tested in examples/shop/tests."""

from decimal import Decimal

from shop.billing import billing
from shop.events import OrderPlaced
from shop.orders_from_csv import envelope, invoices
from tests.conftest import Cleanup
from tests.examples.shop_of_a_test import open_shop
from tests.waiting import eventually


async def test_of_the_orders_in_a_csv_each_is_charged_or_a_dead_letter(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    columns = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
    customers = ["17850.0", "13047.0", "", "12583.0", ""] * 6
    rows = [
        f"{536_365 + n},22752,BABUSHKA  ,{n + 1},2010-12-01 08:34:00,7.65,{customer},France"
        for n, customer in enumerate(customers)
    ]
    async with open_shop((billing,), broker_url, unique, cleanup) as shop:
        for invoice, lines in invoices([columns, *rows], "day.csv"):
            await shop.publisher.publish_envelope(envelope(invoice, lines))
        counts = shop.counts
        await eventually(
            lambda: counts.handled + sum(counts.dead_lettered.values()) == 30, "all are settled"
        )
        charged = await shop.payments()
        letters = await shop.dead_letters("billing.charge")
        unpaid = [letter.envelope.decode(OrderPlaced) for letter in letters if letter.envelope]
        assert len(charged) + len(unpaid) == 30
        assert counts.dead_lettered == {"given-up": 12}
        assert {order.customer_id for order in unpaid} == {None}
        total = sum(amount for _, amount in charged) + sum(order.total for order in unpaid)
        assert total == Decimal("7.65") * sum(range(1, 31))
