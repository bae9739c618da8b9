"""The shop's desk for returns: money goes back once, so what happens there is in transactions."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from evworker.broker import Envelope, Event, Outbox
from evworker.cli.demo.shop import BankTimeoutError
from evworker.workers import Context, Middleware, Plugin, Retry


class GoodsReturned(Event, topic="goods.returned"):
    order: str
    total: Decimal


class RefundPaid(Event, topic="refunds.paid"):
    order: str
    total: Decimal


class Base(DeclarativeBase):
    """The shop's own tables, beside evworker's."""


class Return(Base):
    __tablename__ = "returns"
    order: Mapped[str] = mapped_column(primary_key=True)


class Refund(Base):
    __tablename__ = "refunds"
    # Of its own, and not the order's: the table itself would let an order be paid back twice.
    number: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str]
    total: Mapped[str]


class NeverPaidError(Exception):
    """There is nothing to pay back."""


outbox = Outbox(source="demo")


async def take_back(session: AsyncSession, event: GoodsReturned) -> Envelope:
    session.add(Return(order=event.order))
    envelope = await outbox.add(session, event, key=event.order)
    if event.order == "1003":
        raise NeverPaidError("its card was declined")
    return envelope


def desk(prefix: str, middleware: Iterable[Middleware] = ()) -> tuple[Plugin, ...]:
    """Who pays back, and who tells the customer so."""
    middleware = tuple(middleware)
    return make_refunds(prefix, middleware), make_letters(prefix, middleware)


def make_refunds(prefix: str, middleware: tuple[Middleware, ...]) -> Plugin:
    refunds = Plugin("refunds", middleware=middleware)

    @refunds.consumer(
        GoodsReturned, queue=f"{prefix}.refunds", retry=Retry("1s"), transactional=True
    )
    async def pay_back(event: GoodsReturned, ctx: Context) -> None:
        ctx.session.add(Refund(order=event.order, total=str(event.total)))
        await ctx.publish(RefundPaid(order=event.order, total=event.total))
        if event.order == "1002" and ctx.attempt == 1:
            raise BankTimeoutError("the bank does not answer")

    return refunds


def make_letters(prefix: str, middleware: tuple[Middleware, ...]) -> Plugin:
    letters = Plugin("letters", middleware=middleware)

    @letters.consumer(queue=f"{prefix}.letters", retry=Retry("1s"))
    async def write(event: RefundPaid, ctx: Context) -> None:
        ctx.log.info("written", order=event.order)

    return letters
