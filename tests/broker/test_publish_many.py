"""Many events in one go: all confirmed and in order, or an error that says which are not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from aio_pika.abc import AbstractChannel

from evworker.broker import (
    Connection,
    ConnectionLostError,
    Envelope,
    Event,
    HeadersError,
    InvalidEventError,
    Publisher,
    PublishManyError,
    PublishNackedError,
    UnroutableError,
    count_messages,
)
from tests.broker.conftest import Bind, Take
from tests.broker.events import Blob, OrderPlaced, OrderRefunded
from tests.proxy import Proxy


def orders(count: int) -> Iterator[OrderPlaced]:
    return (OrderPlaced(order_id=str(number)) for number in range(count))


async def test_all_arrive_in_order_and_their_envelopes_are_returned(
    publisher: Publisher, connection: Connection, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    envelopes = await publisher.publish_many(orders(3_000))
    assert [one.decode(OrderPlaced).order_id for one in envelopes] == [
        str(number) for number in range(3_000)
    ]
    # Confirmed is stored: nothing need be waited for.
    assert await count_messages(connection, queue.name) == 3_000
    assert [message.message_id for message in await take(queue)] == [one.id for one in envelopes]


async def test_none_are_published_as_well(publisher: Publisher) -> None:
    assert await publisher.publish_many([]) == []


async def test_each_is_published_as_if_it_were_alone(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("#")
    cause = Envelope.wrap(OrderPlaced(order_id="cause"), source="web")
    mine = Envelope.wrap(OrderPlaced(order_id="2"), source="elsewhere", id="mine", key="kept")

    def key(event: Event) -> str:
        assert isinstance(event, OrderPlaced | OrderRefunded)
        return f"customer-{event.order_id}"

    first, second, third = await publisher.publish_many(
        [OrderPlaced(order_id="1"), mine, OrderRefunded(order_id="3")],
        key=key,
        priority=3,
        headers={"tenant": "acme"},
        cause=cause,
    )
    assert [one.key for one in (first, second, third)] == ["customer-1", "kept", "customer-3"]
    assert second == mine
    assert first.causation_id == third.causation_id == cause.id
    messages = await take(queue)
    assert [message.routing_key for message in messages] == [
        "orders.placed",
        "orders.placed",
        "orders.eu.refunded",
    ]
    for message, envelope in zip(messages, (first, second, third), strict=True):
        assert message.message_id == envelope.id
        assert message.priority == 3
        assert message.headers == {"tenant": "acme"}
        assert message.body == envelope.encode()


async def test_large_ones_are_among_them(publisher: Publisher, bind: Bind, take: Take) -> None:
    queue = await bind("#")
    sizes = [10, 1_100_000, 10, 300_000, 1_100_000, 10]
    envelopes = await publisher.publish_many(Blob(content="x" * size) for size in sizes)
    arrived = {message.message_id: len(message.body) for message in await take(queue)}
    assert arrived == {envelope.id: len(envelope.encode()) for envelope in envelopes}


async def test_what_a_full_queue_refuses_is_told_apart_and_can_be_sent_again(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind(
        "orders.placed", queue_type="classic", max_length=700, overflow="reject-publish"
    )
    events = orders(10_000)
    with pytest.raises(PublishManyError, match="700 events are confirmed, ") as caught:
        await publisher.publish_many(events)
    confirmed, failed = caught.value.confirmed, caught.value.failed
    assert {type(error) for _, error in failed} == {PublishNackedError}
    assert caught.value.__cause__ is failed[0][1]
    # Neither is missing nor in both, and the rest is where it was.
    taken = [one.decode(OrderPlaced).order_id for one in confirmed]
    taken += [one.decode(OrderPlaced).order_id for one, _ in failed]
    assert sorted(map(int, taken)) == list(range(len(taken)))
    assert next(events).order_id == str(len(taken))
    assert {message.message_id for message in await take(queue)} == {one.id for one in confirmed}
    again = [envelope for envelope, _ in failed][:700]
    assert await publisher.publish_many(again) == again
    assert [message.message_id for message in await take(queue)] == [one.id for one in again]


async def test_what_nothing_takes_is_told_apart(
    publisher: Publisher, onlooker: AbstractChannel, bind: Bind, take: Take, exchange: str
) -> None:
    await onlooker.queue_delete(f"{exchange}.unrouted")
    queue = await bind("orders.placed")
    events = [OrderPlaced(order_id="1"), OrderRefunded(order_id="2"), OrderPlaced(order_id="3")]
    with pytest.raises(PublishManyError) as caught:
        await publisher.publish_many(events)
    assert [one.topic for one, _ in caught.value.failed] == ["orders.eu.refunded"]
    assert isinstance(caught.value.failed[0][1], UnroutableError)
    assert [message.message_id for message in await take(queue)] == [
        one.id for one in caught.value.confirmed
    ]


class Anything(Event, topic="any"):
    value: object


async def test_an_event_that_can_not_be_written_ends_it_and_what_came_before_is_told(
    publisher: Publisher, connection: Connection, bind: Bind
) -> None:
    queue = await bind("#")
    events = [OrderPlaced(order_id="1"), Anything(value=object()), OrderPlaced(order_id="2")]
    with pytest.raises(PublishManyError, match="can't be written as JSON") as caught:
        await publisher.publish_many(events)
    assert isinstance(caught.value.__cause__, InvalidEventError)
    assert len(caught.value.confirmed) == 1
    assert not caught.value.failed
    assert await count_messages(connection, queue.name) == 1


async def test_an_iterable_that_fails_ends_it_and_what_came_before_is_told(
    publisher: Publisher, connection: Connection, bind: Bind
) -> None:
    queue = await bind("#")

    def events() -> Iterator[Event]:
        yield from orders(100)
        raise OSError("the file is gone")

    with pytest.raises(PublishManyError, match="the file is gone") as caught:
        await publisher.publish_many(events())
    assert len(caught.value.confirmed) == 100
    assert await count_messages(connection, queue.name) == 100


async def test_properties_that_amqp_can_not_carry_are_the_failure_of_their_event(
    publisher: Publisher, connection: Connection, bind: Bind
) -> None:
    queue = await bind("#")
    with pytest.raises(PublishManyError) as caught:
        await publisher.publish_many(orders(5), key=lambda _: "\ud800")
    ((_, error),) = caught.value.failed
    assert isinstance(error, HeadersError)
    assert await count_messages(connection, queue.name) == 0


@pytest.fixture
async def proxied(proxy: Proxy, exchange: str) -> AsyncIterator[Publisher]:
    async with Publisher(proxy.address, exchange=exchange, source="tests") as opened:
        yield opened


async def test_a_connection_that_breaks_in_the_middle_leaves_no_doubt_about_what_was_confirmed(
    publisher: Publisher, proxied: Publisher, proxy: Proxy, bind: Bind, take: Take
) -> None:
    queue = await bind("orders.placed")
    taken = 0

    def events() -> Iterator[Event]:
        nonlocal taken
        for taken, event in enumerate(orders(6_000), start=1):
            if taken == 3_000:
                proxy.cut()
            yield event

    with pytest.raises(PublishManyError) as caught:
        await proxied.publish_many(events())
    confirmed = {one.id for one in caught.value.confirmed}
    failed = {one.id for one, _ in caught.value.failed}
    assert {type(error) for _, error in caught.value.failed} == {ConnectionLostError}
    assert len(confirmed) + len(failed) == taken
    arrived = {message.message_id for message in await take(queue)}
    assert confirmed <= arrived <= confirmed | failed
