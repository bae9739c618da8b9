"""One suite, and every broker that has to pass it: the embedded one, and each real one listed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pamqp.commands import Exchange, Queue

from evworker.broker import BrokerVersion
from evworker.broker.embedded import EmbeddedBroker
from tests.conformance.client import Channel, Link, linked
from tests.conftest import broker_id
from tests.services import EMBEDDED, broker_urls, on_embedded

QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


@dataclass(frozen=True)
class Target:
    """A broker that the suite runs against."""

    url: str
    version: BrokerVersion
    is_embedded: bool

    @property
    def is_4(self) -> bool:
        """Whether it behaves as RabbitMQ 4 does, and not as 3."""
        return self.version.major >= 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        real = [
            pytest.param(url, marks=pytest.mark.broker, id=broker_id(url))
            for url in ([] if on_embedded() else broker_urls())
        ]
        metafunc.parametrize("target", [pytest.param(EMBEDDED, id=EMBEDDED), *real], indirect=True)


@pytest.fixture
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    if request.param != EMBEDDED:
        yield await _told(request.param, is_embedded=False)
        return
    async with EmbeddedBroker() as broker:
        yield await _told(broker.url, is_embedded=True)


async def _told(url: str, *, is_embedded: bool) -> Target:
    async with linked(url) as link:
        return Target(url, BrokerVersion.of(link.server_properties), is_embedded)


New = Callable[[str], str]


@pytest.fixture
async def new(target: Target, unique: str) -> AsyncIterator[New]:
    """Names of this test's own; what has them is deleted in the end."""
    names: list[str] = []

    def named(short: str) -> str:
        names.append(f"{unique}.{short}")
        return names[-1]

    yield named
    if target.is_embedded:
        return
    async with linked(target.url) as link:
        channel = await link.channel()
        for name in names:
            await channel.call(Queue.Delete(queue=name))
            await channel.call(Exchange.Delete(exchange=name))


@pytest.fixture
async def link(target: Target, new: New) -> AsyncIterator[Link]:
    """A connection, which is closed before what has names of the test's is deleted."""
    async with linked(target.url) as opened:
        yield opened


@pytest.fixture
async def ch(link: Link) -> Channel:
    """A channel with confirms."""
    return await (await link.channel()).confirm()


@pytest.fixture(params=["classic", "quorum"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
