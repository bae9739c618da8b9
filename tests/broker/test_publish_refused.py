"""What the broker won't take, or would close the connection for: an error of its own each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aiormq import spec

from evworker.broker import (
    BrokerVersion,
    Connection,
    HeadersError,
    MessageTooLargeError,
    Publisher,
    PublishError,
    PublishNackedError,
    TopologyMismatchError,
    count_messages,
)
from evworker.broker.headers import HEADERS_LIMIT_BYTES, size_of
from tests.broker.conftest import Bind, Take
from tests.broker.events import OrderPlaced
from tests.conftest import Cleanup


async def test_a_full_queue_is_a_nack_and_only_for_what_did_not_fit(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind(
        "orders.placed", queue_type="classic", max_length=2, overflow="reject-publish"
    )
    stored = [await publisher.publish(OrderPlaced(order_id=str(n))) for n in range(2)]
    with pytest.raises(PublishNackedError, match=r"orders\.placed id-3: the broker did not take"):
        await publisher.publish(OrderPlaced(order_id="3"), id="id-3")
    assert [message.message_id for message in await take(queue)] == [one.id for one in stored]
    await publisher.publish(OrderPlaced(order_id="3"), id="id-3")


async def test_a_body_over_the_limit_is_refused_and_harms_nobody(
    publisher: Publisher, connection: Connection, bind: Bind, exchange: str
) -> None:
    queue = await bind("orders.placed")
    limit = connection.version.max_message_bytes
    body = bytes(limit + 1)
    too_large, *others = await asyncio.gather(
        publisher.send(
            body, spec.Basic.Properties(message_id="big"), exchange=exchange, routing_key="a.b"
        ),
        *(publisher.publish(OrderPlaced(order_id=str(n))) for n in range(200)),
        return_exceptions=True,
    )
    assert isinstance(too_large, MessageTooLargeError)
    assert f"{limit + 1:,} bytes" in str(too_large)
    assert f"at most {limit:,}" in str(too_large)
    assert not [one for one in others if isinstance(one, BaseException)]
    assert await count_messages(connection, queue.name) == 200


async def test_a_body_that_the_broker_refuses_harms_nobody_either(
    publisher: Publisher,
    connection: Connection,
    bind: Bind,
    exchange: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A broker may have been given a lower limit than we know of.
    queue = await bind("orders.placed")
    body = bytes(connection.version.max_message_bytes + 1)
    monkeypatch.setattr(BrokerVersion, "max_message_bytes", len(body))
    properties = spec.Basic.Properties(message_id="big")
    too_large, *others = await asyncio.gather(
        publisher.send(body, properties, exchange=exchange, routing_key="a.b", timeout_s=60),
        *(publisher.publish(OrderPlaced(order_id=str(n)), timeout_s=60) for n in range(50)),
        return_exceptions=True,
    )
    assert isinstance(too_large, MessageTooLargeError)
    assert not [one for one in others if isinstance(one, BaseException)]
    assert await count_messages(connection, queue.name) == 50


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"h": [1, 2]}, "the header 'h' is a list"),
        ({"h": b"bytes"}, "the header 'h' is a bytes"),
        ({"h": "v" * HEADERS_LIMIT_BYTES}, "at most 65,536 can be sent"),
        ({"n" * 129: 1}, "the header name"),
        ({"h": "\ud800"}, "not valid Unicode"),
        ({"evw-attempt": 1}, "'evw-attempt' can't be set"),
        ({"x-death": "x"}, "'x-death' can't be set"),
    ],
)
async def test_bad_headers_are_refused_before_anything_is_sent(
    publisher: Publisher,
    connection: Connection,
    exchange: str,
    headers: dict[str, Any],
    reason: str,
) -> None:
    with pytest.raises(HeadersError, match=reason):
        await publisher.publish(OrderPlaced(order_id="42"), headers=headers)
    assert await count_messages(connection, f"{exchange}.unrouted") == 0
    await publisher.publish(OrderPlaced(order_id="43"), headers={"good": 1})


async def test_the_largest_headers_that_are_allowed_pass_the_broker(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("#")
    value = "v" * (HEADERS_LIMIT_BYTES - size_of({"h": ""}))
    await publisher.publish(OrderPlaced(order_id="42"), headers={"h": value})
    (message,) = await take(queue)
    assert message.headers["h"] == value


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
async def test_a_number_that_the_broker_can_not_read_travels_as_text(
    publisher: Publisher, bind: Bind, take: Take, value: str
) -> None:
    queue = await bind("#")
    await publisher.publish(OrderPlaced(order_id="42"), headers={"h": float(value)})
    (message,) = await take(queue)
    assert message.headers["h"] == value


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"id": "i" * 256}, "the id 'iiii.*longer than 255 bytes"),
        ({"id": "ü" * 128}, "longer than 255 bytes"),
        ({"id": "\ud800"}, "not valid Unicode"),
        ({"key": "\ud800"}, "not valid Unicode"),
        ({"priority": 256}, "priority 256 is not between 0 and 255"),
        ({"priority": -1}, "priority -1 is not between 0 and 255"),
    ],
)
async def test_properties_that_amqp_can_not_carry_are_refused(
    publisher: Publisher, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(HeadersError, match=reason):
        await publisher.publish(OrderPlaced(order_id="42"), **options)
    await publisher.publish(OrderPlaced(order_id="43"))


async def test_a_long_key_is_data_and_may_be_long(
    publisher: Publisher, bind: Bind, take: Take
) -> None:
    queue = await bind("#")
    await publisher.publish(OrderPlaced(order_id="42"), key="k" * 5_000)
    assert len(await take(queue)) == 1


async def test_an_exchange_that_one_may_not_publish_to_is_named(
    publisher: Publisher, onlooker: AbstractChannel, unique: str, cleanup: Cleanup
) -> None:
    internal = cleanup.exchange(f"{unique}.internal")
    await onlooker.declare_exchange(internal, ExchangeType.TOPIC, durable=True, internal=True)
    with pytest.raises(PublishError, match=f"may not publish there: .*{internal}") as refused:
        await publisher.send(
            b"{}", spec.Basic.Properties(message_id="1"), exchange=internal, routing_key="a"
        )
    assert type(refused.value) is PublishError
    await publisher.publish(OrderPlaced(order_id="43"))


async def test_a_foreign_user_id_fails_its_publish_and_the_publisher_goes_on(
    publisher: Publisher, exchange: str
) -> None:
    with pytest.raises(PublishError, match="user_id"):
        await publisher.send(
            b"{}",
            spec.Basic.Properties(message_id="1", user_id="somebody-else"),
            exchange=exchange,
            routing_key="a",
        )
    await publisher.publish(OrderPlaced(order_id="43"))


async def test_an_exchange_of_another_kind_is_told_when_the_publisher_opens(
    broker_url: str, onlooker: AbstractChannel, exchange: str
) -> None:
    await onlooker.declare_exchange(exchange, ExchangeType.DIRECT, durable=True)
    publisher = Publisher(broker_url, exchange=exchange)
    with pytest.raises(TopologyMismatchError, match=f"exchange '{exchange}': "):
        await publisher.open()
