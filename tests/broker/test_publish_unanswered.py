"""Publishing to a broker that confirms nothing, or late, or blocks: no result is ever made up.

No RabbitMQ does that when it is asked to. So all of it runs on the embedded broker, with the fast
lane and without.
"""

from __future__ import annotations

import asyncio

import pytest
from aio_pika.abc import AbstractChannel
from aiormq import spec

from evworker.broker import (
    Connection,
    ConnectionLostError,
    Envelope,
    Publisher,
    PublishError,
    PublishManyError,
    PublishTimeoutError,
    UnroutableError,
)
from evworker.broker.embedded import EmbeddedBroker, Faults
from tests.broker.conftest import Bind, Take
from tests.broker.events import Blob, OrderPlaced
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("either_lane")


@pytest.fixture
def broker_url(embedded: EmbeddedBroker) -> str:
    return embedded.url


@pytest.fixture
def faults(embedded: EmbeddedBroker) -> Faults:
    return embedded.faults


async def publish(publisher: Publisher, number: int, timeout_s: float = 30) -> Envelope:
    event = OrderPlaced(order_id=str(number))
    return await publisher.publish(event, id=f"id-{number}", timeout_s=timeout_s)


async def test_no_confirm_is_a_timeout_and_the_event_may_be_there(
    publisher: Publisher, faults: Faults, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    faults.withhold_confirms()
    with pytest.raises(
        PublishTimeoutError, match=r"orders\.placed id-1: no confirm for 0\.1 s; .* may have it"
    ):
        await publish(publisher, 1, timeout_s=0.1)
    assert [message.message_id for message in await take(queue)] == ["id-1"]
    faults.release_confirms()
    await publish(publisher, 1)  # the id can be used again
    assert [message.message_id for message in await take(queue)] == ["id-1"]


async def test_a_large_event_has_a_deadline_too(
    publisher: Publisher, faults: Faults, bind: Bind, take: Take
) -> None:
    queue = await bind("blobs.*")
    large = Blob(content="x" * 2_000_000)
    await publisher.publish(large)  # on a channel of its own, which is open then
    faults.withhold_confirms()
    with pytest.raises(PublishTimeoutError, match="no confirm"):
        await publisher.publish(large, timeout_s=0.5)
    assert len(await take(queue)) == 2


async def test_each_ends_by_its_own_deadline(publisher: Publisher, faults: Faults) -> None:
    faults.withhold_confirms()
    patient = asyncio.create_task(publish(publisher, 1, timeout_s=300))
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(PublishTimeoutError, match=r"no confirm for 0\.1 s"):
            await publish(publisher, 2, timeout_s=0.1)
    assert not patient.done()
    await publisher.close()
    with pytest.raises(PublishError):
        await patient


async def test_one_that_is_cancelled_frees_its_id(publisher: Publisher, faults: Faults) -> None:
    faults.withhold_confirms()
    publishing = asyncio.create_task(publish(publisher, 1))
    await eventually(lambda: faults.publishes == 1)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    faults.release_confirms()
    await publish(publisher, 1)


async def test_a_confirm_behind_the_deadline_is_nobody_elses(
    publisher: Publisher, faults: Faults, onlooker: AbstractChannel, exchange: str
) -> None:
    await onlooker.queue_delete(f"{exchange}.unrouted")

    async def send(key: str, message_id: str) -> None:
        properties = spec.Basic.Properties(message_id=message_id)
        await publisher.send(b"{}", properties, exchange=exchange, routing_key=key)

    faults.withhold_confirms()
    with pytest.raises(PublishTimeoutError):
        await publisher.publish(OrderPlaced(order_id="1"), id="same", timeout_s=0.1)
    again = asyncio.create_task(send("nowhere", "same"))
    third = asyncio.create_task(send("elsewhere", "third"))
    await eventually(lambda: faults.publishes == 3)
    faults.release_confirms()
    with pytest.raises(UnroutableError, match="elsewhere third"):
        await third
    with pytest.raises(UnroutableError, match="nowhere same"):
        await again


async def test_all_that_is_in_flight_when_the_broker_goes_away_is_told_so(
    publisher: Publisher, faults: Faults
) -> None:
    faults.withhold_confirms()
    publishing = [asyncio.create_task(publish(publisher, number)) for number in range(200)]
    await eventually(lambda: faults.publishes == 200)
    faults.go_away()
    results = await asyncio.gather(*publishing, return_exceptions=True)
    assert {type(result) for result in results} == {ConnectionLostError}
    assert str(results[7]).startswith("orders.placed id-7: the connection was lost")
    assert not any(task.cancelled() for task in publishing)
    await faults.come_back()


async def test_a_broker_that_blocks_publishing_is_noticed_and_named(
    connection: Connection, faults: Faults, exchange: str
) -> None:
    async with Publisher(connection, exchange=exchange) as publisher:
        faults.block("low on memory")
        with pytest.raises(PublishTimeoutError, match="no confirm for"):
            await publish(publisher, 1, timeout_s=0.1)  # who is blocked hears of it when it asks
        await eventually(lambda: connection.is_blocked)
        with pytest.raises(PublishTimeoutError, match=r"the broker blocks publishing for 0\.1 s"):
            await publish(publisher, 2, timeout_s=0.1)
        faults.unblock()
        await eventually(lambda: not connection.is_blocked)
        await publish(publisher, 3)


# Many at once


def orders(count: int) -> list[OrderPlaced]:
    return [OrderPlaced(order_id=str(number)) for number in range(count)]


async def test_of_many_each_that_is_not_confirmed_is_a_timeout(
    publisher: Publisher, faults: Faults, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    faults.withhold_confirms()
    with pytest.raises(PublishManyError, match=r"no confirm for 0\.3 s") as caught:
        await publisher.publish_many(orders(50), timeout_s=0.3)
    assert [type(error) for _, error in caught.value.failed] == [PublishTimeoutError] * 50
    assert len(await take(queue)) == 50


async def test_many_that_are_cancelled_leave_a_publisher_that_works(
    publisher: Publisher, faults: Faults, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    faults.withhold_confirms()
    publishing = asyncio.create_task(publisher.publish_many(orders(300)))
    await eventually(lambda: faults.publishes == 300)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    faults.release_confirms()
    await publisher.publish_many(orders(300))
    assert len(await take(queue)) == 600
