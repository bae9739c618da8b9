"""The shop as a whole: what one plugin publishes, and what the others make of it."""

import smtplib
from decimal import Decimal

import pytest

from evworker.workers.testing import TestWorker
from shop.billing import billing
from shop.dashboard import dashboard
from shop.events import FraudSuspected, UserRegistered
from shop.fraud import fraud
from shop.notifications import notifications, thank
from shop.tables import Base
from shop.tests.orders import PUT_OFF, order


async def test_a_paid_order_is_shown_and_its_customer_thanked() -> None:
    async with TestWorker(billing, notifications, dashboard, tables=Base.metadata) as shop:
        await shop.publish(order())
        assert shop.state(notifications).sent == [
            ("customer-17850@shop.example", "We received 15.30 for order 536366")
        ]
        assert shop.state(dashboard).rows()[:2] == [
            ("ordered", 1, Decimal("15.30")),
            ("paid", 1, Decimal("15.30")),
        ]
        assert shop.state(dashboard).best_sellers(5) == [("T-light holder", 6)]


async def test_an_order_that_comes_twice_is_paid_thanked_and_shown_once() -> None:
    async with TestWorker(billing, notifications, dashboard, tables=Base.metadata) as shop:
        shop.deliver_twice()
        await shop.publish(order())
        assert len(shop.duplicates) == 1
        assert len(shop.state(notifications).sent) == 1
        assert [count for _, count, _ in shop.state(dashboard).rows()] == [1, 1, 0, 0, 0]


async def test_a_mail_server_that_puts_us_off_is_asked_again_when_it_says() -> None:
    async with TestWorker(billing, notifications, tables=Base.metadata) as shop:
        await shop.publish(order(PUT_OFF))
        assert [attempt.delay_s for attempt in shop.retried.by(thank)] == [2.0]
        assert len(shop.state(notifications).sent) == 1


async def test_a_mailbox_that_does_not_exist_is_not_tried_again() -> None:
    async with TestWorker(notifications) as shop:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            await shop.publish(UserRegistered(user_id="7", email="eve@nowhere.example"))
        assert [letter.attempt for letter in shop.dead_letters] == [1]
        await shop.publish(UserRegistered(user_id="8", email="ada@shop.example"))
        assert shop.state(notifications).sent == [("ada@shop.example", "Welcome")]


async def test_a_mail_server_that_stays_down_is_a_dead_letter_after_three_attempts() -> None:
    async with TestWorker(notifications) as shop:
        with pytest.raises(ConnectionRefusedError):
            await shop.publish(UserRegistered(user_id="7", email="ada@down.example"))
        assert [attempt.delay_s for attempt in shop.retried] == [1.0, 2.0]
        assert [letter.attempt for letter in shop.dead_letters] == [3]


async def test_fraud_detection_needs_no_change_to_any_producer() -> None:
    async with TestWorker(billing, fraud, tables=Base.metadata) as shop:
        await shop.publish_many(order(str(number)) for number in range(600_000, 600_006))
        await shop.publish(order("600006", customer_id="13777", total="2558.42"))
        suspicions = shop.published.of(FraudSuspected)
        assert {event.customer_id for event in suspicions} == {"17850", "13777"}
        assert shop.unrouted.of(FraudSuspected) == suspicions  # nobody listens yet
