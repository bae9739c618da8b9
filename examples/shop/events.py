"""What happens in the shop: the events, and not a word about who listens to them.

Producers and consumers share this file and nothing else. Between teams it would be a small package
of its own, or each side would declare the fields that it needs: unknown fields are ignored.
"""

from decimal import Decimal
from typing import Annotated
from uuid import UUID, uuid5

import msgspec

from evworker.broker import Event

# Money is Decimal, never float. In JSON it is a string: "139.12".

# A type says what is allowed: a consumer never sees an order of minus three pieces.
Quantity = Annotated[int, msgspec.Meta(gt=0)]


class OrderLine(msgspec.Struct, frozen=True):
    sku: str
    description: str
    quantity: Quantity
    unit_price: Decimal


class Fee(msgspec.Struct, frozen=True):
    """Postage, a discount (which is below zero), and whatever else is not goods."""

    code: str
    description: str
    amount: Decimal


class UserRegistered(Event, topic="users.registered"):
    user_id: str
    email: str


class OrderPlaced(Event, topic="orders.placed"):
    """Carries the whole order, so that nobody who hears of it has to ask for more."""

    order_id: str
    customer_id: str | None  # real orders come without one; billing decides what that means
    country: str
    total: Decimal
    lines: tuple[OrderLine, ...]
    fees: tuple[Fee, ...] = ()


class OrderCancelled(Event, topic="orders.cancelled"):
    """Goods or fees given back. It has a number of its own and does not name the order."""

    cancellation_id: str
    customer_id: str | None
    country: str
    total: Decimal
    lines: tuple[OrderLine, ...]
    fees: tuple[Fee, ...] = ()


class PaymentProcessed(Event, topic="payments.processed"):
    order_id: str
    customer_id: str
    amount: Decimal


class PaymentRefunded(Event, topic="payments.refunded"):
    cancellation_id: str
    customer_id: str
    amount: Decimal


class FraudSuspected(Event, topic="fraud.suspected"):
    customer_id: str | None
    why: str


_SHOP = UUID("6f9d3c58-5d0c-5a6e-9d0e-2b1f0c7a4e11")


def id_of(what: str) -> str:
    """The same id for the same thing, every time.

    A handler that runs twice would otherwise publish two events that nobody can tell from two
    payments.
    """
    return str(uuid5(_SHOP, what))
