"""The shop's plugins on a real broker, as a reader of examples/shop/README.md meets them."""

from decimal import Decimal
from zlib import crc32

import pytest

from shop.billing import billing
from shop.dashboard import dashboard
from shop.events import OrderCancelled, OrderLine, OrderPlaced, UserRegistered, id_of
from shop.fraud import fraud
from shop.notifications import notifications
from shop.orders_from_csv import envelope, invoices
from tests.conftest import Cleanup
from tests.examples.shop_of_a_test import open_shop
from tests.waiting import eventually

LINES = (OrderLine("85123A", "T-light holder", 6, Decimal("2.55")),)


def order(order_id: str, *, customer_id: str | None = "17850", total: str = "15.30") -> OrderPlaced:
    return OrderPlaced(
        order_id=order_id,
        customer_id=customer_id,
        country="United Kingdom",
        total=Decimal(total),
        lines=LINES,
    )


def quiet(number: int) -> str:
    """The id of an order that neither the gateway nor the mail server makes wait."""
    ids = (str(n) for n in range(600_000, 700_000))
    calm = [id for id, _ in zip(ids, range(1_000), strict=False) if crc32(id.encode()) % 10]
    return [id for id in calm if crc32(id.encode()) % 25][number]


async def test_an_order_is_charged_its_customer_thanked_and_both_are_shown(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    id = quiet(0)
    async with open_shop((billing, notifications, dashboard), broker_url, unique, cleanup) as shop:
        await shop.publisher.publish(order(id))
        await eventually(lambda: shop.states["notifications"].sent, "a mail is sent")
        figures = shop.states["dashboard"]
        await eventually(lambda: figures.payments, "the dashboard shows the payment")
        assert await shop.payments() == [(id, Decimal("15.30"))]
        assert shop.states["notifications"].sent == [
            ("customer-17850@shop.example", f"We received 15.30 for order {id}")
        ]
        assert figures.rows()[:2] == [
            ("ordered", 1, Decimal("15.30")),
            ("paid", 1, Decimal("15.30")),
        ]
        assert figures.best_sellers(5) == [("T-light holder", 6)]


async def test_a_timeout_of_the_gateway_is_tried_again_and_then_charged_once(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    slow = next(str(n) for n in range(600_000, 700_000) if crc32(str(n).encode()) % 10 == 0)
    async with open_shop((billing,), broker_url, unique, cleanup) as shop:
        await shop.publisher.publish(order(slow))
        await eventually(lambda: shop.counts.handled == 1, "it is charged")
        assert shop.counts.retried == 1
        assert await shop.payments() == [(slow, Decimal("15.30"))]
        assert list(shop.states["billing"].charged.values()) == [Decimal("15.30")]
        assert not await shop.dead_letters("billing.charge")


@pytest.mark.parametrize(
    ("placed", "error_type"),
    [
        (order(quiet(0), customer_id=None), "shop.billing.NoCustomer"),
        (order(quiet(1), total="3000.01"), "shop.billing.CardDeclined"),
    ],
)
async def test_who_cannot_pay_is_a_dead_letter_at_first_sight(
    placed: OrderPlaced, error_type: str, broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    async with open_shop((billing,), broker_url, unique, cleanup) as shop:
        await shop.publisher.publish(placed)
        [letter] = await eventually(lambda: shop.dead_letters("billing.charge"), "a dead letter")
        assert (letter.failure.reason, letter.failure.attempts) == ("given-up", 1)
        assert letter.failure.error_type == error_type
        assert letter.envelope is not None
        assert letter.envelope.decode(OrderPlaced) == placed
        assert not await shop.payments()
        assert not shop.states["billing"].charged


async def test_a_cancellation_is_paid_back(broker_url: str, unique: str, cleanup: Cleanup) -> None:
    cancelled = OrderCancelled(
        cancellation_id="C536391",
        customer_id="17548",
        country="United Kingdom",
        total=Decimal("141.48"),
        lines=LINES,
    )
    async with open_shop((billing, dashboard), broker_url, unique, cleanup) as shop:
        await shop.publisher.publish(cancelled)
        figures = shop.states["dashboard"]
        await eventually(lambda: figures.refunds, "the dashboard shows the refund")
        assert figures.refunds == {"C536391": Decimal("141.48")}
        assert figures.cancellations == {"C536391": Decimal("141.48")}
        assert await shop.payments() == [("C536391", Decimal("-141.48"))]


async def test_an_order_that_comes_twice_is_charged_and_counted_once(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    placed = order(quiet(0))
    async with open_shop((billing, dashboard), broker_url, unique, cleanup) as shop:
        for _ in range(2):
            await shop.publisher.publish(placed, id=id_of("the same"))
        await eventually(lambda: shop.counts.duplicates == 1, "the second one is known")
        await eventually(lambda: shop.counts.handled == 4, "one payment, and all is shown")
        assert await shop.payments() == [(placed.order_id, placed.total)]
        assert [count for _, count, _ in shop.states["dashboard"].rows()] == [1, 1, 0, 0, 0]


async def test_fraud_detection_works_without_a_change_to_any_producer(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    async with open_shop((billing, fraud), broker_url, unique, cleanup) as shop:
        for number in range(6):
            await shop.publisher.publish(order(quiet(number)))
        await shop.publisher.publish(order(quiet(6), customer_id="13777", total="2558.42"))
        # One for six payments of one customer, one for the large order; nobody listens to either.
        await eventually(lambda: shop.counts.handled == 7 * 3, "all is handled")
        await eventually(shop.unrouted, "the suspicions are kept")
        assert await shop.unrouted() == 2


async def test_a_mailbox_that_does_not_exist_is_not_tried_again(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    async with open_shop((notifications,), broker_url, unique, cleanup) as shop:
        for address in ("ada@shop.example", "eve@nowhere.example"):
            await shop.publisher.publish(UserRegistered(user_id="7", email=address))
        [letter] = await eventually(
            lambda: shop.dead_letters("notifications.welcome"), "a dead letter"
        )
        assert (letter.failure.reason, letter.failure.attempts) == ("given-up", 1)
        await eventually(lambda: shop.states["notifications"].sent, "the other mail is sent")
        assert shop.states["notifications"].sent == [("ada@shop.example", "Welcome")]


async def test_a_mail_server_that_stays_down_is_a_dead_letter_after_three_attempts(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    async with open_shop((notifications,), broker_url, unique, cleanup) as shop:
        await shop.publisher.publish(UserRegistered(user_id="7", email="ada@down.example"))
        [letter] = await eventually(
            lambda: shop.dead_letters("notifications.welcome"), "a dead letter"
        )
        assert (letter.failure.reason, letter.failure.attempts) == ("failed", 3)
        assert letter.failure.error_type == "ConnectionRefusedError"


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
