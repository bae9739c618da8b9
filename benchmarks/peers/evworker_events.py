"""The order of `measured.ORDER` as an event of evworker."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from evworker.broker import Event


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: int
    price: Decimal


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: str
    customer_id: str
    currency: str
    total: Decimal
    placed_at: datetime
    lines: list[Line]
