"""A shop with one table, and transactional consumers that write into it."""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.tables import inbox, outbox
from evworker.workers import Context
from tests.workers.stage import OrderPlaced

metadata = MetaData()

effects = Table(
    "effects",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("order_id", String(64), nullable=False),
)
"""A row for each time that an order took effect: nothing keeps it from being there twice."""

unique_effects = Table("unique_effects", metadata, Column("order_id", String(64), primary_key=True))
"""Here the database keeps an order from taking effect twice."""


async def charge(event: OrderPlaced, ctx: Context) -> None:
    """The handler of most tests: one effect for each event."""
    await ctx.session.execute(insert(effects).values(order_id=event.order_id))


class Shop:
    """What is in the database, as somebody else sees it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    async def make(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

    async def effects(self) -> list[str]:
        """The order of each effect, sorted."""
        return sorted(await self._column(effects.c.order_id))

    async def inbox(self) -> list[tuple[str, str]]:
        """The consumer and event id of each inbox row, sorted."""
        async with self.engine.connect() as connection:
            rows = await connection.execute(select(inbox.c.consumer, inbox.c.event_id))
            return sorted((row.consumer, row.event_id) for row in rows)

    async def outbox(self) -> list[str]:
        """The topic of each row, in order."""
        return await self._column(outbox.c.topic, outbox.c.seq)

    async def outbox_bodies(self) -> list[bytes]:
        return await self._column(outbox.c.body, outbox.c.seq)

    async def count(self, table: Table) -> int:
        async with self.engine.connect() as connection:
            return (await connection.scalar(select(func.count()).select_from(table))) or 0

    async def _column(self, column: Column, order: Column | None = None) -> list:  # type: ignore[type-arg]
        async with self.engine.connect() as connection:
            found = await connection.execute(
                select(column).order_by(column if order is None else order)
            )
            return list(found.scalars())
