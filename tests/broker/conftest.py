"""What the ground floor's tests share: a publisher on an exchange of its own, and onlookers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from evworker.broker import Connection, Publisher
from evworker.broker.fastlane.switch import VARIABLE
from tests.conftest import Cleanup
from tests.proxy import Proxy, listening


@pytest.fixture
async def connection(broker_url: str, unique: str) -> AsyncIterator[Connection]:
    async with Connection(broker_url, name=f"{unique} tests") as opened:
        yield opened


@pytest.fixture
def exchange(unique: str, cleanup: Cleanup) -> str:
    """The name of an exchange, which is gone afterwards with its queue for the unrouted."""
    cleanup.exchange(f"{unique}.unrouted")
    cleanup.queue(f"{unique}.unrouted")
    return cleanup.exchange(unique)


@pytest.fixture
async def publisher(broker_url: str, exchange: str) -> AsyncIterator[Publisher]:
    async with Publisher(broker_url, exchange=exchange, source="tests") as opened:
        yield opened


@pytest.fixture(params=["1", "0"], ids=["fast lane", "aio-pika"])
def either_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it is, once by aio-pika alone; for what no run on listed brokers reaches."""
    monkeypatch.setenv(VARIABLE, request.param)


@pytest.fixture
async def proxy(broker_url: str) -> AsyncIterator[Proxy]:
    async with listening(broker_url) as opened:
        yield opened


@pytest.fixture
async def onlooker(broker_url: str) -> AsyncIterator[AbstractChannel]:
    """A plain aio-pika channel, which knows nothing of evworker."""
    async with await aio_pika.connect(broker_url) as plain, plain.channel() as channel:
        yield channel


class Bind(Protocol):
    def __call__(
        self, *patterns: str, name: str = "q", **arguments: str | int
    ) -> Awaitable[AbstractQueue]: ...


@pytest.fixture
async def bind(
    onlooker: AbstractChannel, exchange: str, publisher: Publisher, cleanup: Cleanup
) -> Bind:
    """Declares a plain queue and binds it to the publisher's exchange."""

    async def bound(*patterns: str, name: str = "q", **arguments: str | int) -> AbstractQueue:
        queue = await onlooker.declare_queue(
            cleanup.queue(f"{exchange}.{name}"),
            durable=True,
            arguments={f"x-{key.replace('_', '-')}": value for key, value in arguments.items()},
        )
        for pattern in patterns:
            await queue.bind(exchange, pattern)
        return queue

    return bound


Taken = list[AbstractIncomingMessage]
Take = Callable[[AbstractQueue | str], Awaitable[Taken]]


@pytest.fixture
def take(onlooker: AbstractChannel) -> Take:
    """Takes all that is in a queue."""

    async def taken(queue: AbstractQueue | str) -> Taken:
        if isinstance(queue, str):
            queue = await onlooker.get_queue(queue, ensure=False)
        messages = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            messages.append(message)
        return messages

    return taken
