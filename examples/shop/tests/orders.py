"""Orders to be tested with."""

from decimal import Decimal

from shop.events import OrderLine, OrderPlaced

SLOW = "536375"  # the gateway does not answer at the first attempt
PUT_OFF = "536463"  # the mail server wants to be asked again
LINES = (OrderLine("85123A", "T-light holder", 6, Decimal("2.55")),)


def order(
    order_id: str = "536366", *, customer_id: str | None = "17850", total: str = "15.30"
) -> OrderPlaced:
    return OrderPlaced(
        order_id=order_id,
        customer_id=customer_id,
        country="United Kingdom",
        total=Decimal(total),
        lines=LINES,
    )
