"""Looking at dead letters: nothing moves, nothing is lost, however often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel
from aiormq import spec
from pamqp import commands

from evworker.broker import (
    BrokerError,
    Connection,
    Failure,
    Publisher,
    QueueNotFoundError,
    browse_dead_letters,
    count_messages,
    dead_letter_queue,
)
from tests.broker.conftest import Take
from tests.broker.events import OrderPlaced
from tests.waiting import eventually
from tests.wire import Wire, method_in, unchanged


async def put(publisher: Publisher, letters: str, number: int) -> None:
    failure = Failure("failed", error_type="CardDeclinedError", attempts=number)
    await publisher.send(
        b'{"order_id": "%d"}' % number,
        spec.Basic.Properties(
            message_id=f"id-{number}",
            message_type="orders.placed",
            delivery_mode=2,
            headers=failure.to_headers(),
        ),
        exchange="",
        routing_key=letters,
    )


async def test_a_hundred_looks_change_nothing(
    publisher: Publisher, connection: Connection, letters: str, take: Take
) -> None:
    ids = [f"id-{number}" for number in range(1, 6)]
    for number in range(1, 6):
        await put(publisher, letters, number)
    for look in range(100):
        # A part, the whole, and more than there is.
        limit = (2, 5, 50)[look % 3]
        seen = await browse_dead_letters(connection, letters, limit)
        assert [letter.id for letter in seen] == ids[:limit], f"look {look}"
        assert [letter.position for letter in seen] == list(range(1, len(seen) + 1))

    async def all_there() -> bool:
        return await count_messages(connection, letters) == 5

    await eventually(all_there)
    assert [message.message_id for message in await take(letters)] == ids


async def test_many_letters_keep_their_order(
    publisher: Publisher, connection: Connection, letters: str
) -> None:
    for number in range(1, 301):
        await put(publisher, letters, number)
    for limit in (100, 300, 7, 300):
        seen = await browse_dead_letters(connection, letters, limit)
        assert [letter.id for letter in seen] == [f"id-{n}" for n in range(1, limit + 1)]


async def test_a_letter_tells_what_it_is_and_why_it_is_there(
    publisher: Publisher, connection: Connection, letters: str
) -> None:
    await put(publisher, letters, 7)
    (letter,) = await browse_dead_letters(connection, letters, 10)
    assert (letter.id, letter.topic, letter.position) == ("id-7", "orders.placed", 1)
    assert letter.envelope is not None
    assert letter.envelope.value() == {"order_id": "7"}
    assert letter.body == b'{"order_id": "7"}'
    assert letter.failure == Failure("failed", error_type="CardDeclinedError", attempts=7)


async def test_what_can_not_be_read_keeps_its_bytes(
    onlooker: AbstractChannel, connection: Connection, letters: str
) -> None:
    body = b"\xff\x00{"
    headers: dict[str, Any] = {"evw-reason": "undecodable", "evw-origin-routing-key": "orders.new"}
    await onlooker.default_exchange.publish(
        Message(body, content_type="application/json", message_id="m", headers=headers), letters
    )
    (letter,) = await browse_dead_letters(connection, letters, 10)
    assert letter.envelope is None
    assert letter.body == body
    assert (letter.id, letter.topic, letter.content_type) == ("m", "orders.new", "application/json")
    assert letter.failure.reason == "undecodable"


async def test_what_someone_else_put_there_is_unknown(
    onlooker: AbstractChannel, connection: Connection, letters: str
) -> None:
    await onlooker.default_exchange.publish(Message(b"[1]"), letters)
    (letter,) = await browse_dead_letters(connection, letters, 10)
    assert letter.failure == Failure("unknown")
    assert letter.envelope is not None


async def return_until_given_up(
    onlooker: AbstractChannel, connection: Connection, queue: str
) -> None:
    plain = await onlooker.get_queue(queue)

    async def given_up() -> bool:
        message = await plain.get(fail=False)
        if message is not None:
            await message.reject(requeue=True)
        return bool(await count_messages(connection, dead_letter_queue(queue)))

    await eventually(given_up)


async def test_what_killed_its_workers_has_crashed(
    publisher: Publisher,
    onlooker: AbstractChannel,
    connection: Connection,
    queue: str,
    letters: str,
    exchange: str,
) -> None:
    envelope = await publisher.publish(OrderPlaced(order_id="1"))
    await return_until_given_up(onlooker, connection, queue)
    for _ in range(5):
        (letter,) = await browse_dead_letters(connection, letters, 10)
        assert letter.failure.reason == "crashed"
        assert letter.failure.failed_at is not None
        assert (letter.failure.origin_exchange, letter.failure.origin_routing_key) == (
            exchange,
            "orders.placed",
        )
        assert letter.envelope == envelope


async def test_bare_json_that_killed_its_workers_still_has_its_topic(
    onlooker: AbstractChannel, connection: Connection, queue: str, letters: str, exchange: str
) -> None:
    plain = await onlooker.get_exchange(exchange)
    await plain.publish(Message(b"{}", delivery_mode=DeliveryMode.PERSISTENT), "orders.legacy")
    await return_until_given_up(onlooker, connection, queue)
    (letter,) = await browse_dead_letters(connection, letters, 10)
    assert (letter.failure.reason, letter.topic) == ("crashed", "orders.legacy")


async def test_one_that_failed_before_it_crashed_keeps_its_history(
    publisher: Publisher,
    onlooker: AbstractChannel,
    connection: Connection,
    queue: str,
    letters: str,
) -> None:
    failure = Failure(
        "failed",
        error_type="CardDeclinedError",
        attempts=2,
        origin_exchange="elsewhere",
        origin_routing_key="orders.first",
    )
    await publisher.send(
        b"{}",
        spec.Basic.Properties(message_id="m", delivery_mode=2, headers=failure.to_headers()),
        exchange="",
        routing_key=queue,
    )
    await return_until_given_up(onlooker, connection, queue)
    (letter,) = await browse_dead_letters(connection, letters, 10)
    assert letter.failure == replace(failure, reason="crashed", failed_at=letter.failure.failed_at)
    assert letter.topic == "orders.first"


async def test_an_empty_queue_has_no_letters_and_a_missing_one_is_an_error(
    connection: Connection, letters: str, unique: str
) -> None:
    assert await browse_dead_letters(connection, letters, 10) == []
    assert await count_messages(connection, letters) == 0
    assert await count_messages(connection, f"{unique}.none") is None
    with pytest.raises(QueueNotFoundError, match=rf"no queue '{unique}\.none' on amqp://"):
        await browse_dead_letters(connection, f"{unique}.none", 10)


async def test_nothing_is_taken_when_nothing_is_asked_for(
    publisher: Publisher, connection: Connection, letters: str
) -> None:
    await put(publisher, letters, 1)
    assert await browse_dead_letters(connection, letters, 0) == []
    assert await count_messages(connection, letters) == 1


async def test_a_look_that_breaks_off_loses_nothing(
    publisher: Publisher, connection: Connection, wire: Wire, letters: str
) -> None:
    for number in range(1, 4):
        await put(publisher, letters, number)

    def cut_at_a_letter(_connection: int, data: bytes) -> bytes:
        if isinstance(method_in(data), commands.Basic.Deliver | commands.Basic.GetOk):
            wire.cut()
            return b""
        return data

    async with Connection(wire.url, name="cut") as breaking:
        wire.from_broker = cut_at_a_letter
        with pytest.raises(BrokerError):
            await browse_dead_letters(breaking, letters, 10)
        wire.from_broker = unchanged

    async def all_there() -> bool:
        seen = await browse_dead_letters(connection, letters, 10)
        return [letter.id for letter in seen] == ["id-1", "id-2", "id-3"]

    await eventually(all_there)
