"""The shop's own tables. evworker's outbox and inbox are in the same database, which is the point.

    python -m shop.tables

makes those of the shop; `evworker outbox init` makes evworker's. A real shop has migrations for
both.
"""

import asyncio
import os
from decimal import Decimal

from sqlalchemy import Dialect, String
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from evworker.broker.database.engine import open_engine

DATABASE_URL = os.environ.get("EVWORKER_DATABASE_URL", "sqlite:///shop.db")
"""A file in the working directory, or for example postgresql://user:password@localhost/shop."""


class Money(TypeDecorator[Decimal]):
    """Decimal here, text there: SQLite has no exact fractions."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class Base(DeclarativeBase):
    pass


class Order(Base):
    """What customers have ordered, and what they have cancelled, with a total below zero."""

    __tablename__ = "orders"
    number: Mapped[str] = mapped_column(String(32), primary_key=True)
    customer_id: Mapped[str | None] = mapped_column(String(32))
    total: Mapped[Decimal] = mapped_column(Money)


class Payment(Base):
    """What was charged, and what was paid back, with an amount below zero."""

    __tablename__ = "payments"
    # Of its own, and not the order's: the table itself would let an order be paid twice.
    id: Mapped[int] = mapped_column(primary_key=True)
    order_number: Mapped[str] = mapped_column(String(32))
    customer_id: Mapped[str] = mapped_column(String(32))
    amount: Mapped[Decimal] = mapped_column(Money)


async def make_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def main() -> None:
    engine = open_engine(DATABASE_URL)
    await make_tables(engine)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
