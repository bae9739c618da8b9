"""Publishing over a connection that breaks, hangs or is blocked: no result is ever made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from evworker.broker import (
    BrokerError,
    Connection,
    ConnectionLostError,
    Envelope,
    Publisher,
    PublishTimeoutError,
    count_messages,
)
from tests.broker.conftest import Bind, Take
from tests.broker.events import OrderPlaced
from tests.proxy import Proxy
from tests.waiting import eventually


@pytest.fixture
async def proxied(proxy: Proxy, exchange: str) -> AsyncIterator[Publisher]:
    """A publisher on a wire that can be cut. Ask for `publisher` too, to declare its exchange."""
    async with Publisher(proxy.address, exchange=exchange, source="tests") as opened:
        yield opened


async def publish(publisher: Publisher, number: int) -> Envelope:
    return await publisher.publish(OrderPlaced(order_id=str(number)), id=f"id-{number}")


async def test_a_deadline_counts_while_there_is_no_connection(
    proxied: Publisher, proxy: Proxy
) -> None:
    proxy.refuse()
    proxy.cut()
    await eventually(lambda: not proxied_is_connected(proxied))
    with pytest.raises(PublishTimeoutError, match="not sent, there was no channel to amqp://"):
        await proxied.publish(OrderPlaced(order_id="1"), timeout_s=0.2)


def proxied_is_connected(publisher: Publisher) -> bool:
    channel = publisher._sending.channel  # noqa: SLF001 - nobody else can tell that it has noticed
    return channel is not None and not channel.is_closed


async def test_the_publisher_comes_back_and_what_is_published_meanwhile_waits(
    proxied: Publisher, proxy: Proxy, connection: Connection, bind: Bind
) -> None:
    queue = await bind("orders.placed")
    await publish(proxied, 0)
    proxy.refuse()
    proxy.cut()
    await eventually(lambda: not proxied_is_connected(proxied))
    waiting = [asyncio.create_task(publish(proxied, number)) for number in range(1, 50)]
    await proxy.open()
    await asyncio.gather(*waiting)
    assert await count_messages(connection, queue.name) == 50


def more_than(things: set[str], count: int) -> bool:
    return len(things) > count


async def test_however_often_it_breaks_each_publish_is_confirmed_or_raises(
    proxied: Publisher, proxy: Proxy, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    confirmed: set[str] = set()

    async def insist(number: int) -> None:
        while f"id-{number}" not in confirmed:
            try:
                await publish(proxied, number)
            except ConnectionLostError:
                continue
            confirmed.add(f"id-{number}")

    for cut in range(3):
        publishing = [asyncio.create_task(insist(cut * 300 + n)) for n in range(300)]
        await eventually(partial(more_than, confirmed, cut * 300 + 50))
        proxy.cut()
        await asyncio.gather(*publishing)
    assert len(confirmed) == 900
    assert {message.message_id for message in await take(queue)} == confirmed


async def test_closing_while_publishing_leaves_nothing_hanging(
    broker_url: str, exchange: str
) -> None:
    publisher = Publisher(broker_url, exchange=exchange)
    await publisher.open()
    publishing = [asyncio.create_task(publish(publisher, number)) for number in range(300)]
    await asyncio.sleep(0)
    await publisher.close()
    results = await asyncio.gather(*publishing, return_exceptions=True)
    assert {type(one) for one in results if not isinstance(one, Envelope)} <= {
        ConnectionLostError,
        BrokerError,
    }
