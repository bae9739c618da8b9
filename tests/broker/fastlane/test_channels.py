"""Channels that end, are closed, and whose numbers are used again; and links that stall."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiormq.exceptions
import pytest
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.base import Frame

from evworker.broker import Connection, count_messages
from evworker.broker.cancellation import cancel_all
from evworker.broker.delivery import Delivery
from evworker.broker.intake import Intake
from tests.broker.fastlane.conftest import fill
from tests.conftest import Cleanup
from tests.waiting import eventually
from tests.wire import Wire, method_in

MANY = 1_000
MISSED_S = 8.0  # aiormq gives a heartbeat of one second up after six


async def open_intake(
    connection: Connection, queue: str, prefetch: int = MANY
) -> tuple[Intake, list[Delivery]]:
    came: list[Delivery] = []
    return await Intake.open(connection, queue, prefetch=prefetch, receive=came.append), came


async def test_what_is_acked_before_a_close_is_told_before_it(
    wire: Wire, connection: Connection, queue: str
) -> None:
    methods: list[Frame | None] = []

    def note(_connection: int, data: bytes) -> bytes:
        methods.append(method_in(data))
        return data

    wire.from_client = note
    await fill(connection, queue, MANY)
    async with Connection(wire.url, name="test") as noted:
        intake, came = await open_intake(noted, queue)
        await eventually(lambda: len(came) == MANY)
        assert all([await delivery.ack() for delivery in came if int(delivery.body) % 3])
        await intake.close()
        assert not any([await delivery.ack() for delivery in came if not int(delivery.body) % 3])
    close = next(
        n for n, method in enumerate(methods) if isinstance(method, commands.Channel.Close)
    )
    acks = [n for n, method in enumerate(methods) if isinstance(method, commands.Basic.Ack)]
    assert acks
    assert max(acks) < close


async def test_a_channel_that_the_broker_closes_harms_no_other(
    connection: Connection, queue: str, unique: str
) -> None:
    other = f"{unique}.other"
    await (await connection.channel()).queue_declare(other, exclusive=True)
    await fill(connection, queue, MANY)
    async with Connection(connection.address, name="test") as shared:
        intake, came = await open_intake(shared, queue)
        await eventually(lambda: len(came) == MANY)
        channel = intake._channel  # noqa: SLF001 - the one to be closed
        living = await shared.channel()
        await living.basic_qos(prefetch_count=1)
        waiting = iter(came)

        async def ack_all() -> list[bool]:
            acked = []
            for delivery in waiting:
                acked.append(await delivery.ack())
                await asyncio.sleep(0)  # a write of its own for each
            return acked

        acking = asyncio.create_task(ack_all())
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await channel.queue_declare(f"{unique}.nowhere", passive=True)
        acked = await acking
        assert await intake.ended()
        assert acked == sorted(acked, reverse=True), "once it is gone it stays so"
        assert not came[-1].is_live
        await living.basic_qos(prefetch_count=2)
        again, more = await open_intake(shared, queue)
        assert shared._link is living.connection, "the connection lives"  # noqa: SLF001
        left = MANY - sum(acked)
        await eventually(lambda: len(more) >= left)
        assert all([await delivery.ack() for delivery in more])
        await again.close()


async def test_a_queue_that_is_deleted_under_its_deliveries(
    connection: Connection, queue: str
) -> None:
    await fill(connection, queue, MANY)
    async with Connection(connection.address, name="test") as shared:
        intake, came = await open_intake(shared, queue)
        await eventually(lambda: len(came) == MANY)
        half = MANY // 2
        assert all([await delivery.ack() for delivery in came[:half]])
        await (await connection.channel()).queue_delete(queue)
        assert "the broker cancelled the consumer" in await intake.ended()
        assert all([await delivery.ack() for delivery in came[half:-1]])
        assert await came[-1].hand_back()
        await shared._link.channel()  # type: ignore[union-attr]  # noqa: SLF001 - and it answers
        assert not intake._channel.is_closed  # noqa: SLF001 - nothing of that was wrong
        await intake.close()


async def test_numbers_of_channels_are_used_again_by_whoever(
    connection: Connection, queue: str
) -> None:
    """First with a tap, then by the library itself, then with a tap once more."""
    await fill(connection, queue, 3)
    first, came = await open_intake(connection, queue, prefetch=1)
    await eventually(lambda: len(came) == 1)
    number = first._channel.number  # noqa: SLF001 - what this is about
    await came[0].ack()
    await first.close()

    by_library: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    channel = await connection.channel()
    assert channel.number == number
    await channel.basic_qos(prefetch_count=1)
    await channel.basic_consume(queue, by_library.put)
    message = await asyncio.wait_for(by_library.get(), 30)
    await channel.basic_ack(message.delivery_tag or 0)
    await channel.close()

    last, more = await open_intake(connection, queue)
    assert last._channel.number == number  # noqa: SLF001
    await eventually(lambda: {delivery.body for delivery in more} == {b"2"} or len(more) > 1)
    assert all([await delivery.ack() for delivery in more])
    assert not await came[0].ack(), "the first channel's is not the last one's"
    await last.close()

    async def empty() -> bool:
        return await count_messages(connection, queue) == 0

    await eventually(empty)


async def test_acks_are_held_while_the_other_end_does_not_read(
    wire: Wire, connection: Connection, queue: str
) -> None:
    await fill(connection, queue, MANY)
    async with Connection(wire.url, name="test") as stalled:
        intake, came = await open_intake(stalled, queue)
        await eventually(lambda: len(came) == MANY)
        tap = stalled._tap  # noqa: SLF001 - what it holds is seen nowhere else
        other = await stalled.channel()
        wire.stall()
        large = [
            asyncio.create_task(other.basic_publish(bytes(8_000_000), routing_key="nowhere"))
            for _ in range(3)
        ]
        if tap is not None:
            await eventually(lambda: not tap.is_writable)
            assert tap._socket is not None  # noqa: SLF001
            held = tap._socket.get_write_buffer_size()  # noqa: SLF001
        acking = [asyncio.create_task(delivery.ack()) for delivery in came]
        if tap is not None:
            assert all(await asyncio.gather(*acking))
            for _ in range(10):
                await asyncio.sleep(0)
            assert tap._socket is not None  # noqa: SLF001
            assert tap._socket.get_write_buffer_size() == held, "held until it reads"  # noqa: SLF001
        wire.flow()
        assert all(await asyncio.gather(*acking))
        await asyncio.gather(*large)
        await intake.close()

    async def empty() -> bool:
        return await count_messages(connection, queue) == 0

    await eventually(empty)


async def test_a_connection_on_which_deliveries_never_pause_is_no_dead_one(
    connection: Connection, unique: str, cleanup: Cleanup
) -> None:
    """A broker that has anything to send sends no heartbeats, and aiormq is not shown the rest."""
    classic = cleanup.queue(unique)
    await (await connection.channel()).queue_declare(classic, durable=True)
    await fill(connection, classic, 20)
    returned = 0
    returning: set[asyncio.Task[bool]] = set()

    def give_back(delivery: Delivery) -> None:
        nonlocal returned
        returned += 1
        task = asyncio.create_task(delivery.hand_back())
        returning.add(task)
        task.add_done_callback(returning.discard)

    address = replace(connection.address, heartbeat_s=1)
    loop = asyncio.get_running_loop()
    async with Connection(address, name="test") as busy:
        intake = await Intake.open(busy, classic, prefetch=20, receive=give_back)
        dead_after = loop.time() + MISSED_S
        ended = asyncio.create_task(intake.ended())
        while loop.time() < dead_after and not ended.done():
            await asyncio.wait([ended], timeout=0.1)
        assert not ended.done(), ended.result()
        await cancel_all(ended)
    assert returned > 1_000
