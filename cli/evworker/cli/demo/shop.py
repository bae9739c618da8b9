"""The little shop of `evworker demo`: what a user of evworker would write.

It runs outside the demo as well: ``evworker run evworker.cli.demo.shop:shop``.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from evworker.broker import Event
from evworker.workers import AnyEvent, Context, Middleware, Plugin, Retry


class OrderPlaced(Event, topic="orders.placed"):
    order: str
    customer: str
    total: Decimal


class PaymentProcessed(Event, topic="payments.processed"):
    order: str
    total: Decimal


class BankTimeoutError(Exception):
    """Worth another attempt."""


class CardDeclinedError(Exception):
    """Not worth one: the card will be declined again."""


def shop(prefix: str = "shop", middleware: Iterable[Middleware] = ()) -> tuple[Plugin, ...]:
    """Three plugins that know each other's events and nothing else of each other."""
    middleware = tuple(middleware)
    return (
        make_billing(prefix, middleware),
        make_notifications(prefix, middleware),
        make_analytics(prefix, middleware),
    )


def make_billing(prefix: str, middleware: tuple[Middleware, ...]) -> Plugin:
    billing = Plugin("billing", middleware=middleware)

    @billing.consumer(
        OrderPlaced,
        queue=f"{prefix}.billing",
        retry=Retry("1s", "1s", "1s", give_up_on=CardDeclinedError),
    )
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if event.total > 1000:
            raise CardDeclinedError(f"{event.total} is over the limit of {event.customer}'s card")
        if event.customer == "Grace" and ctx.attempt < 3:
            raise BankTimeoutError("the bank does not answer")
        await ctx.publish(PaymentProcessed(order=event.order, total=event.total))

    return billing


def make_notifications(prefix: str, middleware: tuple[Middleware, ...]) -> Plugin:
    notifications = Plugin("notifications", middleware=middleware)

    @notifications.consumer(queue=f"{prefix}.notifications")
    async def mail(event: OrderPlaced | PaymentProcessed, ctx: Context) -> None:
        ctx.log.info("mailed", order=event.order)

    return notifications


def make_analytics(prefix: str, middleware: tuple[Middleware, ...]) -> Plugin:
    analytics = Plugin("analytics", middleware=middleware)

    @analytics.consumer("orders.*", "payments.*", queue=f"{prefix}.analytics")
    def count(event: AnyEvent, ctx: Context) -> None:  # a plain function runs in a thread
        ctx.log.info("counted", total=event.data["total"])

    return analytics
