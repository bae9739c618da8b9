"""Billing, tested as its authors would: the real worker, and no broker to be started.

cd examples && python -m pytest shop
"""

from decimal import Decimal

import pytest
from sqlalchemy import select

from evworker.workers.testing import TestWorker, assert_idempotent
from shop.billing import CardDeclined, GatewayTimeout, NoCustomer, billing, charge, refund
from shop.events import OrderCancelled, OrderPlaced, PaymentProcessed
from shop.tables import Base, Payment
from shop.tests.orders import LINES, SLOW, order

CANCELLED = OrderCancelled(
    cancellation_id="C536391",
    customer_id="17548",
    country="United Kingdom",
    total=Decimal("141.48"),
    lines=LINES,
)


def worker() -> TestWorker:
    return TestWorker(billing, tables=Base.metadata)


async def payments(worker: TestWorker) -> list[tuple[str, Decimal]]:
    async with worker.engine.connect() as connection:
        found = await connection.execute(select(Payment.order_number, Payment.amount))
        return [(number, amount) for number, amount in found]


async def test_an_order_is_charged_and_its_payment_published() -> None:
    async with worker() as shop:
        await shop.publish(order())
        assert await payments(shop) == [("536366", Decimal("15.30"))]
        assert list(shop.state(billing).charged.values()) == [Decimal("15.30")]
        assert shop.published.of(PaymentProcessed) == [
            PaymentProcessed(order_id="536366", customer_id="17850", amount=Decimal("15.30"))
        ]


async def test_a_timeout_of_the_gateway_is_tried_again_and_charged_once() -> None:
    slow = order(SLOW)
    async with worker() as shop:
        await shop.publish(slow)
        [attempt] = shop.retried
        assert isinstance(attempt.error, GatewayTimeout)
        assert attempt.delay_s == 1.0
        assert await payments(shop) == [(slow.order_id, slow.total)]


@pytest.mark.parametrize(
    ("placed", "error"),
    [(order(customer_id=None), NoCustomer), (order(total="3000.01"), CardDeclined)],
)
async def test_who_cannot_pay_is_a_dead_letter_at_first_sight(
    placed: OrderPlaced, error: type[Exception]
) -> None:
    async with worker() as shop:
        with pytest.raises(error):
            await shop.publish(placed)
        [letter] = shop.dead_letters
        assert (letter.reason, letter.attempt) == ("given-up", 1)
        assert await payments(shop) == []
        assert shop.state(billing).charged == {}


async def test_a_cancellation_is_paid_back() -> None:
    async with worker() as shop:
        await shop.publish(CANCELLED)
        assert await payments(shop) == [("C536391", Decimal("-141.48"))]
        assert shop.consumed.by(refund).events == [CANCELLED]


async def test_the_bank_is_asked_once_though_the_worker_crashes() -> None:
    async with worker() as shop:
        shop.crash_before_ack()
        await shop.publish(order())
        assert [delivery.end for delivery in shop.deliveries] == ["crashed", "handled"]
        assert len(shop.state(billing).charged) == 1
        assert len(await payments(shop)) == 1


async def test_however_an_order_comes_it_is_charged_once() -> None:
    await assert_idempotent(charge, order(), tables=Base.metadata)
