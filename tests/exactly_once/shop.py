"""A shop whose every effect is a row, so that what was applied twice can be counted.

Orders are taken in transactions that also add an event to the outbox. Billing and the stock act on
them; the ledger acts on what billing publishes. Handlers fail at random and are tried again.
"""

from __future__ import annotations

import os
import random

import sqlalchemy as sa

from evworker.broker import Event
from evworker.workers import Context, Plugin, Retry

PREFIX = os.environ.get("SHOP_PREFIX", "shop")
FAILING_SHARE = 0.05

metadata = sa.MetaData()

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("order_id", sa.String(64), primary_key=True),
    sa.Column("customer", sa.String(64), nullable=False),
)

effects = sa.Table(
    "effects",
    metadata,
    # Nothing here is unique: only the inbox stands between a redelivery and a second effect.
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("consumer", sa.String(64), nullable=False),
    sa.Column("order_id", sa.String(64), nullable=False),
)


class OrderTaken(Event, topic="orders.taken"):
    order_id: str
    customer: str
    number: int
    """Counts up for each customer, in the order in which the orders were committed."""


class OrderBilled(Event, topic="orders.billed"):
    order_id: str


class BadDayError(Exception):
    """What a handler fails with now and then."""


patience = Retry(*["100ms"] * 5, *["500ms"] * 20)

shop = Plugin("shop")


@shop.consumer(OrderTaken, queue=f"{PREFIX}.billing", retry=patience, transactional=True)
async def billing(event: OrderTaken, ctx: Context) -> None:
    await note("billing", event.order_id, ctx)
    await ctx.publish(OrderBilled(order_id=event.order_id), key=event.customer)
    maybe_fail()


@shop.consumer(OrderTaken, queue=f"{PREFIX}.stock", retry=patience, transactional=True)
async def stock(event: OrderTaken, ctx: Context) -> None:
    maybe_fail()
    await note("stock", event.order_id, ctx)


@shop.consumer(OrderBilled, queue=f"{PREFIX}.ledger", retry=patience, transactional=True)
async def ledger(event: OrderBilled, ctx: Context) -> None:
    await note("ledger", event.order_id, ctx)
    maybe_fail()


CONSUMERS = ("billing", "stock", "ledger")


async def note(consumer: str, order_id: str, ctx: Context) -> None:
    await ctx.session.execute(sa.insert(effects).values(consumer=consumer, order_id=order_id))


def maybe_fail() -> None:
    if random.random() < FAILING_SHARE:
        raise BadDayError
