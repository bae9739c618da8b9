"""The shop at a glance: a table on a terminal, a line for each event in a pipe.

    evworker run shop.dashboard 2>dashboard.log

It asks nobody for anything. Each event carries what there is to show, which is what "event-carried
state transfer" means.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal

import msgspec
from rich.live import Live
from rich.table import Table

from evworker.workers import AnyEvent, Context, Plugin, Retry
from shop.events import OrderCancelled, OrderPlaced, PaymentProcessed, PaymentRefunded


class Figures:
    """What the dashboard knows. Keyed by id: an event that arrives twice changes nothing."""

    def __init__(self) -> None:
        self.orders: dict[str, OrderPlaced] = {}
        self.cancellations: dict[str, Decimal] = {}
        self.payments: dict[str, Decimal] = {}
        self.refunds: dict[str, Decimal] = {}
        self.others: Counter[str] = Counter()

    def take(self, event: AnyEvent) -> str:
        """Count the event in; returns a line about it."""
        match event.topic:
            case "orders.placed":
                order = msgspec.convert(event.data, OrderPlaced)
                self.orders[order.order_id] = order
                return f"{order.order_id} {order.total} {order.country}"
            case "orders.cancelled":
                cancelled = msgspec.convert(event.data, OrderCancelled)
                self.cancellations[cancelled.cancellation_id] = cancelled.total
                return f"{cancelled.cancellation_id} {cancelled.total}"
            case "payments.processed":
                payment = msgspec.convert(event.data, PaymentProcessed)
                self.payments[payment.order_id] = payment.amount
                return f"{payment.order_id} {payment.amount}"
            case "payments.refunded":
                refund = msgspec.convert(event.data, PaymentRefunded)
                self.refunds[refund.cancellation_id] = refund.amount
                return f"{refund.cancellation_id} {refund.amount}"
            case _:  # someone publishes orders.shipped since yesterday
                self.others[event.topic] += 1
                return ""

    def rows(self) -> list[tuple[str, int, Decimal]]:
        ordered = [order.total for order in self.orders.values()]
        unpaid = [
            order.total for order in self.orders.values() if order.order_id not in self.payments
        ]
        return [
            ("ordered", len(ordered), _sum(ordered)),
            ("paid", len(self.payments), _sum(self.payments.values())),
            ("not paid yet", len(unpaid), _sum(unpaid)),
            ("cancelled", len(self.cancellations), _sum(self.cancellations.values())),
            ("paid back", len(self.refunds), _sum(self.refunds.values())),
        ]

    def best_sellers(self, most: int) -> list[tuple[str, int]]:
        sold: Counter[str] = Counter()
        for order in self.orders.values():
            for line in order.lines:
                sold[line.description] += line.quantity
        return sold.most_common(most)


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return sum(amounts, Decimal(0))


def _table(figures: Figures) -> Table:
    table = Table(title="The shop today")
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("amount", justify="right")
    for name, count, amount in figures.rows():
        table.add_row(name, f"{count:,}", f"{amount:,.2f}")
    table.add_section()
    for name, count in figures.best_sellers(5):
        table.add_row(name.capitalize(), f"{count:,}", "")
    return table


async def _repaint(live: Live, figures: Figures) -> None:
    while True:
        live.update(_table(figures), refresh=True)
        await asyncio.sleep(0.25)


@asynccontextmanager
async def screen() -> AsyncIterator[Figures]:
    figures = Figures()
    if not sys.stdout.isatty():
        yield figures
        for name, count, amount in figures.rows():
            print(f"total {name}: {count} {amount}")
        return
    with Live(_table(figures), auto_refresh=False) as live:
        painting = asyncio.create_task(_repaint(live, figures))
        try:
            yield figures
        finally:
            painting.cancel()
            live.update(_table(figures), refresh=True)


dashboard = Plugin("dashboard", lifespan=screen)


# Patterns, so that tomorrow's topics arrive as well, and so AnyEvent: their types are not known.
@dashboard.consumer("orders.*", "payments.*", retry=Retry(give_up_on=msgspec.ValidationError))
async def show(event: AnyEvent, ctx: Context) -> None:
    figures: Figures = ctx.state
    line = figures.take(event)
    if not sys.stdout.isatty():
        print(event.topic, line, flush=True)
