"""The stage: a broker with an exchange and queues of this test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Cleanup
from tests.proxy import Proxy
from tests.workers.stage import Stage


@pytest.fixture
async def stage(broker_url: str, unique: str, cleanup: Cleanup) -> AsyncIterator[Stage]:
    stage = Stage(broker_url, unique, cleanup)
    async with stage.connection:
        await stage.publisher.open()
        yield stage
        await stage.publisher.close()


@pytest.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(broker_url)
    yield proxy
    await proxy.close()


@pytest.fixture
def quick_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer is left sooner than otherwise; for tests of something else."""
    for room in ("channels", "connection"):
        monkeypatch.setattr(f"evworker.broker.{room}.CLOSE_TIMEOUT_S", 0.2)
