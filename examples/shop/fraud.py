"""Fraud detection, added long after the shop had opened.

    evworker run shop.fraud

Nobody was asked to publish anything for it: it binds queues of its own to events that were there
already, and no other file of the shop changed. Take it away again and nobody will notice.
"""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from evworker.workers import Context, Plugin
from shop.events import FraudSuspected, OrderPlaced, PaymentProcessed, id_of

LARGE = Decimal(2000)
OFTEN = 6

# A set of order ids and not a number: an event that arrives twice is in the set once.
Payments = dict[str, set[str]]


@asynccontextmanager
async def payments_by_customer() -> AsyncIterator[Payments]:
    yield defaultdict(set)  # a real one would keep them in a database, and survive a restart


fraud = Plugin("fraud", lifespan=payments_by_customer)


@fraud.consumer(OrderPlaced)
async def large_orders(event: OrderPlaced, ctx: Context) -> None:
    if event.total > LARGE:
        await suspect(ctx, event.customer_id, f"order {event.order_id} is over {event.total}")


@fraud.consumer(PaymentProcessed)
async def frequent_payments(event: PaymentProcessed, ctx: Context) -> None:
    payments: Payments = ctx.state
    paid = payments[event.customer_id]
    if event.order_id in paid:
        return
    paid.add(event.order_id)
    if len(paid) == OFTEN:
        await suspect(ctx, event.customer_id, f"customer {event.customer_id} paid {OFTEN} orders")


async def suspect(ctx: Context, customer_id: str | None, why: str) -> None:
    """Nobody listens to fraud.suspected yet: the broker keeps such events in events.unrouted."""
    ctx.log.warning("fraud suspected", why=why)
    await ctx.publish(FraudSuspected(customer_id=customer_id, why=why), id=id_of(why))
