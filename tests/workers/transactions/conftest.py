"""Every kind of database, with one broker: what is proved here is about the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import Cleanup
from tests.workers.stage import Stage
from tests.workers.transactions.shop import Shop


@pytest.fixture
async def stage(broker_urls: list[str], unique: str) -> AsyncIterator[Stage]:
    cleanup = Cleanup(broker_urls[-1])
    stage = Stage(broker_urls[-1], unique, cleanup)
    async with stage.connection:
        await stage.publisher.open()
        yield stage
        await stage.publisher.close()
    await cleanup.delete_all()


@pytest.fixture
async def shop(engine: AsyncEngine) -> Shop:
    shop = Shop(engine)
    await shop.make()
    return shop
