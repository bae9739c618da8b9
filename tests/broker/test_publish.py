"""Publishing: confirmed, persistent, by topic, and nothing unrouted is lost."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable
from datetime import UTC, datetime
from decimal import Decimal

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aiormq import spec

from evworker.broker import (
    Connection,
    ConnectionLostError,
    Envelope,
    Event,
    InvalidEventError,
    Publisher,
    PublishError,
    PublishManyError,
    UnroutableError,
    count_messages,
)
from evworker.broker.topics import matches
from tests.broker.conftest import Bind, Take
from tests.broker.events import Blob, OrderPlaced, OrderRefunded
from tests.waiting import eventually


async def test_any_client_sees_a_persistent_message_with_mirrored_properties(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    traced = Envelope(
        id="cause",
        source="web",
        topic="users.registered",
        time=datetime.now(UTC),
        data=b"{}",
        correlation_id="first",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    envelope = await publisher.publish(
        OrderPlaced(order_id="42", total=Decimal("0.10")),
        key="customer-7",
        priority=3,
        headers={"tenant": "acme", "ratio": 0.1},
        cause=traced,
    )
    (message,) = await take(queue)
    assert message.delivery_mode == 2
    assert message.content_type == "application/cloudevents+json"
    assert message.message_id == envelope.id
    assert message.type == message.routing_key == "orders.placed"
    assert message.app_id == "tests"
    assert message.correlation_id == "first"
    assert message.priority == 3
    assert message.timestamp is not None
    assert abs(message.timestamp - envelope.time).total_seconds() < 2  # AMQP counts in seconds
    assert message.headers == {
        "tenant": "acme",
        "ratio": "0.1",
        "traceparent": traced.traceparent,
    }
    assert message.user_id is None
    assert message.expiration is None
    assert json.loads(message.body)["data"] == {"order_id": "42", "total": "0.10"}


async def test_what_is_published_can_be_read(publisher: Publisher, bind: Bind, take: Take) -> None:
    queue = await bind("#")
    event = OrderPlaced(order_id="42", total=Decimal("1.10"))
    envelope = await publisher.publish(event, key="k", id="my-id")
    (message,) = await take(queue)
    properties = spec.Basic.Properties(content_type=message.content_type)
    read = Envelope.read(message.body, properties, message.routing_key or "")
    assert read == envelope
    assert read.decode(OrderPlaced) == event
    assert (read.id, read.key, read.version) == ("my-id", "k", 2)


async def test_a_foreign_client_may_publish_bare_json(
    onlooker: AbstractChannel, bind: Bind, take: Take, exchange: str
) -> None:
    queue = await bind("legacy.*")
    plain = await onlooker.get_exchange(exchange, ensure=False)
    await plain.publish(aio_pika.Message(b'{"order_id": "42", "total": 5}'), "legacy.order")
    (message,) = await take(queue)
    envelope = Envelope.read(message.body, spec.Basic.Properties(), message.routing_key or "")
    assert envelope.topic == "legacy.order"
    assert envelope.decode(OrderPlaced) == OrderPlaced(order_id="42", total=Decimal(5))


async def test_thousands_of_publishes_await_their_confirms_at_once(
    publisher: Publisher, connection: Connection, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    envelopes = await asyncio.gather(
        *(publisher.publish(OrderPlaced(order_id=str(number))) for number in range(3_000))
    )
    # Confirmed is stored: nothing need be waited for.
    assert await count_messages(connection, queue.name) == 3_000
    messages = await take(queue)
    assert [message.message_id for message in messages] == [one.id for one in envelopes]


async def test_several_tasks_may_open_and_use_one_publisher(broker_url: str, exchange: str) -> None:
    publisher = Publisher(broker_url, exchange=exchange)
    async with publisher:
        await asyncio.gather(*(publisher.open() for _ in range(5)))
        await publisher.publish(OrderPlaced(order_id="1"))
    await publisher.close()


PATTERNS = ["orders.placed", "orders.*", "orders.#", "*.placed", "#.refunded", "#", "*.*", "*.eu.*"]


async def test_the_broker_routes_topics_as_patterns_promise(
    publisher: Publisher, bind: Bind, take: Take, exchange: str
) -> None:
    queues = {
        pattern: await bind(pattern, name=str(number)) for number, pattern in enumerate(PATTERNS)
    }
    topics = ["orders", "orders.placed", "orders.eu.placed", "orders.eu.refunded", "users.placed"]
    topics += ["refunded", "a.b.c.d.refunded"]
    for topic in topics:
        envelope = Envelope.parse(b"{}", topic=topic)
        await publisher.publish_envelope(envelope)
    for pattern, queue in queues.items():
        arrived = [message.routing_key for message in await take(queue)]
        assert arrived == [topic for topic in topics if matches(pattern, topic)], pattern


async def test_an_event_of_several_matching_patterns_comes_once_to_a_queue(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.#", "#", "orders.eu.*")
    await publisher.publish(OrderRefunded(order_id="1"))
    assert len(await take(queue)) == 1


async def test_what_nobody_is_bound_to_is_kept(
    publisher: Publisher, bind: Bind, take: Take, exchange: str
) -> None:
    queue = await bind("users.*")
    envelope = await publisher.publish(OrderPlaced(order_id="42"))
    await publisher.publish(OrderPlaced(order_id="43"), mandatory=False)
    messages = await take(f"{exchange}.unrouted")
    assert len(messages) == 2
    assert messages[0].message_id == envelope.id
    assert messages[0].routing_key == "orders.placed"
    assert not await take(queue)


async def test_without_that_safety_net_an_unrouted_event_raises_unless_it_may_be_dropped(
    publisher: Publisher, onlooker: AbstractChannel, exchange: str
) -> None:
    await onlooker.queue_delete(f"{exchange}.unrouted")
    with pytest.raises(UnroutableError, match=rf"orders\.placed id-1: no queue.*'{exchange}'"):
        await publisher.publish(OrderPlaced(order_id="42"), id="id-1")
    await publisher.publish(OrderPlaced(order_id="42"), mandatory=False)


async def test_two_publishes_with_one_id_keep_their_own_results(
    publisher: Publisher, onlooker: AbstractChannel, bind: Bind, take: Take, exchange: str
) -> None:
    # aiormq matches a returned message to its publish by the message's id alone.
    await onlooker.queue_delete(f"{exchange}.unrouted")
    queue = await bind("orders.placed")
    routable, unroutable = OrderPlaced(order_id="1"), OrderRefunded(order_id="1")
    for _ in range(20):
        results = await asyncio.gather(
            *(
                publisher.publish(event, id="same")
                for event in (routable, unroutable, routable, unroutable, unroutable, routable)
            ),
            return_exceptions=True,
        )
        assert [isinstance(result, UnroutableError) for result in results] == [
            False,
            True,
            False,
            True,
            True,
            False,
        ]
    assert len(await take(queue)) == 60


async def test_a_large_event_arrives_whole(publisher: Publisher, bind: Bind, take: Take) -> None:
    queue = await bind("blobs.*")
    await publisher.publish(Blob(content="x" * 3_000_000))
    (message,) = await take(queue)
    assert len(json.loads(message.body)["data"]["content"]) == 3_000_000


async def test_a_publisher_can_use_a_connection_and_leaves_it_open(
    connection: Connection, exchange: str
) -> None:
    async with Publisher(connection, exchange=exchange) as publisher:
        await publisher.publish(OrderPlaced(order_id="42"))
    assert await count_messages(connection, f"{exchange}.unrouted") == 1


@pytest.mark.parametrize("size", [1, 2**21], ids=["small", "large"])
async def test_a_closed_publisher_says_so_and_leaves_a_shared_connection_alone(
    connection: Connection, exchange: str, size: int
) -> None:
    publisher = Publisher(connection, exchange=exchange)
    await publisher.open()
    await publisher.close()
    with pytest.raises(ConnectionLostError, match="not sent, the publisher is closed"):
        await publisher.publish(Blob(content="x" * size))
    with pytest.raises(PublishManyError, match="the publisher is closed"):
        await publisher.publish_many([Blob(content="x" * size)])
    assert await count_messages(connection, f"{exchange}.unrouted") == 0


async def test_an_opening_that_meets_a_close_leaves_no_channel_on_a_shared_connection(
    connection: Connection, exchange: str
) -> None:
    publisher = Publisher(connection, exchange=exchange)
    publishing = asyncio.create_task(publisher.publish(OrderPlaced(order_id="42")))
    await asyncio.sleep(0)  # it opens its channel
    await publisher.close()
    with pytest.raises(ConnectionLostError, match="not sent, the publisher is closed"):
        await publishing
    assert publisher._sending.channel is None  # noqa: SLF001 - nobody else can tell


async def test_publishing_from_another_event_loop_is_refused_and_says_what_to_do(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.*")

    def publish_elsewhere() -> list[Exception]:
        return [
            asyncio.run(refusal(publisher.publish(OrderPlaced(order_id="1")))),
            asyncio.run(refusal(publisher.publish_many([OrderPlaced(order_id="1")]))),
        ]

    alone, many = await asyncio.to_thread(publish_elsewhere)
    assert isinstance(alone, PublishError)
    assert isinstance(many, PublishManyError)
    for error in (alone, many):
        assert "not sent, this publisher belongs to another event loop" in str(error)
        assert "asyncio.run_coroutine_threadsafe" in str(error)
    await publisher.publish(OrderPlaced(order_id="2"))
    assert len(await take(queue)) == 1


def test_publishing_from_the_next_event_loop_of_a_thread_is_refused_too(
    broker_url: str, exchange: str
) -> None:
    publisher = Publisher(broker_url, exchange=exchange)
    with asyncio.Runner() as its_own, asyncio.Runner() as another:
        its_own.run(publisher.open())
        error = another.run(refusal(publisher.publish(OrderPlaced(order_id="1"))))
        assert "not sent, this publisher belongs to another event loop" in str(error)
        its_own.run(publisher.publish(OrderPlaced(order_id="2")))
        its_own.run(publisher.close())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_publishing_from_a_fork_is_refused_too(publisher: Publisher) -> None:
    """It would write into its parent's connection."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            error = asyncio.run(refusal(publisher.publish(OrderPlaced(order_id="1"))))
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    await asyncio.to_thread(os.waitpid, child, 0)
    with os.fdopen(reading) as written:
        assert "not sent, this publisher belongs to another event loop" in written.read()
    await publisher.publish(OrderPlaced(order_id="2"))


async def refusal(publishing: Awaitable[object]) -> Exception:
    try:
        await publishing
    except PublishError as error:
        return error
    raise AssertionError("it was published")


async def test_a_closed_publisher_can_be_opened_again(broker_url: str, exchange: str) -> None:
    publisher = Publisher(broker_url, exchange=exchange)
    await publisher.close()
    for _ in range(2):
        await publisher.open()
        await publisher.publish(OrderPlaced(order_id="42"))
        await publisher.close()
        await publisher.close()


async def test_an_exchange_that_was_deleted_is_an_error_once_and_then_made_anew(
    publisher: Publisher, onlooker: AbstractChannel, connection: Connection, exchange: str
) -> None:
    await onlooker.exchange_delete(exchange)
    with pytest.raises(UnroutableError, match=f"no exchange '{exchange}'"):
        await publisher.publish(OrderPlaced(order_id="1"))
    await publisher.publish(OrderPlaced(order_id="2"))
    assert await count_messages(connection, f"{exchange}.unrouted") == 1


async def test_publishes_are_not_blamed_for_another_ones_missing_exchange(
    publisher: Publisher, unique: str, exchange: str
) -> None:
    async def send(to: str) -> None:
        await publisher.send(
            b"{}", spec.Basic.Properties(message_id=to), exchange=to, routing_key="a.b"
        )

    missing = f"{unique}.missing"
    guilty, *innocent = await asyncio.gather(
        send(missing),
        *(publisher.publish(OrderPlaced(order_id="1")) for _ in range(20)),
        return_exceptions=True,
    )
    assert isinstance(guilty, UnroutableError)
    # They shared its channel, so that nobody knows whether they are stored; never "they are not".
    assert not [one for one in innocent if isinstance(one, UnroutableError)]
    await eventually(lambda: publisher_works(publisher))


async def publisher_works(publisher: Publisher) -> bool:
    await publisher.publish(OrderPlaced(order_id="after"))
    return True


async def test_an_event_that_json_can_not_hold_is_refused_before_it_is_sent(
    publisher: Publisher, connection: Connection, exchange: str
) -> None:
    class Anything(Event, topic="any"):
        value: object

    with pytest.raises(InvalidEventError, match="Anything can't be written as JSON"):
        await publisher.publish(Anything(value=object()))
    assert await count_messages(connection, f"{exchange}.unrouted") == 0
