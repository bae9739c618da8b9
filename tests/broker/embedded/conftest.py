"""The embedded broker, and two ways to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from evworker.broker.embedded import EmbeddedBroker, Faults
from tests.conformance.client import Channel, Link, linked


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    async with EmbeddedBroker() as started:
        yield started


@pytest.fixture
def faults(broker: EmbeddedBroker) -> Faults:
    return broker.faults


@pytest.fixture
async def link(broker: EmbeddedBroker) -> AsyncIterator[Link]:
    async with linked(broker.url) as opened:
        yield opened


@pytest.fixture
async def ch(link: Link) -> Channel:
    """A channel with confirms, and a queue `q`."""
    channel = await (await link.channel()).confirm()
    await channel.declare("q")
    return channel
