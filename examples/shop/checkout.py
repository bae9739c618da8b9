"""Checkout: takes the orders of a CSV file, each in a transaction of its own.

    python -m shop.checkout day.csv

The order's row and its event are written together. Committed, both are there, and a relay publishes
the event; rolled back, neither is. Nothing here talks to the broker, which may be away meanwhile.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from evworker.broker import Outbox
from evworker.broker.database.engine import open_engine
from shop.events import OrderCancelled, OrderPlaced
from shop.orders_from_csv import NotAnEvent, envelope, invoices
from shop.tables import DATABASE_URL, Order

outbox = Outbox(source="shop/checkout")


async def take(engine: AsyncEngine, order: OrderPlaced | OrderCancelled, event_id: str) -> bool:
    """Write the order and its event, or neither; False for an order that is there already."""
    if isinstance(order, OrderPlaced):
        number, total = order.order_id, order.total
    else:
        number, total = order.cancellation_id, -order.total
    async with AsyncSession(engine) as session:
        session.add(Order(number=number, customer_id=order.customer_id, total=total))
        try:
            await session.flush()
        except IntegrityError:
            return False
        await outbox.add(session, order, key=number, id=event_id)
        await session.commit()
    return True


def orders(file: str) -> Iterator[tuple[OrderPlaced | OrderCancelled, str]]:
    """The orders of the file, each with the id of its event; what is none is named on stderr."""
    with Path(file).open(encoding="utf-8", newline="") as lines:
        for number, its_lines in invoices(lines, file):
            try:
                document = envelope(number, its_lines)
            except NotAnEvent as why:
                print(f"{file}: invoice {number}: {why}", file=sys.stderr)
            else:
                order = (
                    document.decode(OrderCancelled)
                    if document.topic == "orders.cancelled"
                    else document.decode(OrderPlaced)
                )
                yield order, document.id


async def main(file: str) -> None:
    engine = open_engine(DATABASE_URL)
    counts = Counter[bool]()
    for order, event_id in orders(file):
        counts[await take(engine, order, event_id)] += 1
    await engine.dispose()
    print(f"{file}: {counts[True]} orders taken, {counts[False]} were there already")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
