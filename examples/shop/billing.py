"""Billing charges what is ordered, and pays back what is cancelled.

    evworker run shop.billing

Its handlers are transactional: what they write into the database, what they publish, and the note
that this event was applied are committed together, once for each event, however often it comes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from zlib import crc32

import structlog

from evworker.workers import Context, Plugin, Retry
from shop.events import OrderCancelled, OrderPlaced, PaymentProcessed, PaymentRefunded
from shop.tables import Payment

log = structlog.get_logger("shop.billing")


class GatewayTimeout(Exception):  # noqa: N818 - the shop's own word, as are the next two
    """The gateway is slow today: worth another attempt."""


class CardDeclined(Exception):  # noqa: N818
    """The bank said no, and will say no again."""


class NoCustomer(Exception):  # noqa: N818
    """Nobody to charge. No number of attempts will find one."""


class Gateway:
    """Stands in for a payment provider, and fails in the same way every time that you run it."""

    CARD_LIMIT = Decimal(3000)

    def __init__(self) -> None:
        self.charged: dict[str, Decimal] = {}
        self.refunded: dict[str, Decimal] = {}

    # A transaction can't take back what a bank has done. So banks take a key: what comes again
    # under the same one was done already, and is only confirmed.

    async def charge(self, key: str, order_id: str, amount: Decimal, *, attempt: int) -> None:
        if attempt == 1 and crc32(order_id.encode()) % 10 == 0:
            raise GatewayTimeout(f"no answer for order {order_id}")
        if amount > self.CARD_LIMIT:
            raise CardDeclined(f"{amount} is over the card's limit of {self.CARD_LIMIT}")
        self.charged.setdefault(key, amount)

    async def refund(self, key: str, amount: Decimal) -> None:
        self.refunded.setdefault(key, amount)


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    """Opened once for the worker, before its first event; handlers find it in ctx.state."""
    opened = Gateway()
    yield opened
    log.info(
        "till closed",
        payments=len(opened.charged),
        charged=str(sum(opened.charged.values())),
        refunds=len(opened.refunded),
        refunded=str(sum(opened.refunded.values())),
    )


billing = Plugin("billing", lifespan=gateway)

# A timeout is tried again, three times. The other two are dead letters at first sight: trying again
# would only delay the moment at which a person sees them.
patience = Retry("1s", "5s", "30s", give_up_on=(CardDeclined, NoCustomer))


@billing.consumer(OrderPlaced, retry=patience, transactional=True)
async def charge(event: OrderPlaced, ctx: Context) -> None:
    if event.customer_id is None:
        raise NoCustomer(f"order {event.order_id} over {event.total} names no customer")
    till: Gateway = ctx.state
    await till.charge(ctx.idempotency_key, event.order_id, event.total, attempt=ctx.attempt)
    ctx.session.add(
        Payment(order_number=event.order_id, customer_id=event.customer_id, amount=event.total)
    )
    await ctx.publish(
        PaymentProcessed(
            order_id=event.order_id, customer_id=event.customer_id, amount=event.total
        ),
        key=event.order_id,
    )


@billing.consumer(OrderCancelled, retry=patience, transactional=True)
async def refund(event: OrderCancelled, ctx: Context) -> None:
    if event.customer_id is None:
        raise NoCustomer(f"cancellation {event.cancellation_id} names no customer")
    till: Gateway = ctx.state
    await till.refund(ctx.idempotency_key, event.total)
    ctx.session.add(
        Payment(
            order_number=event.cancellation_id, customer_id=event.customer_id, amount=-event.total
        )
    )
    await ctx.publish(
        PaymentRefunded(
            cancellation_id=event.cancellation_id,
            customer_id=event.customer_id,
            amount=event.total,
        ),
        key=event.cancellation_id,
    )
