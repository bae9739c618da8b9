"""The events that the ground floor's tests publish."""

from __future__ import annotations

from decimal import Decimal

from evworker.broker import Event


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: str
    total: Decimal = Decimal("9.90")


class OrderRefunded(Event, topic="orders.eu.refunded"):
    order_id: str


class Blob(Event, topic="blobs.stored"):
    content: str
