"""What tests wait with, and who cleans up after them."""

import aio_pika
import pytest

from tests.conftest import Cleanup
from tests.waiting import eventually


async def test_the_first_truthy_result_ends_the_wait() -> None:
    results = iter([0, None, 3, 4])
    assert await eventually(lambda: next(results)) == 3


async def test_an_async_condition_is_awaited() -> None:
    results = iter([False, True])

    async def condition() -> bool:
        return next(results)

    assert await eventually(condition)


async def test_an_assertion_that_fails_is_not_yet_the_end() -> None:
    results = iter([1, 2])

    def condition() -> bool:
        assert next(results) == 2
        return True

    assert await eventually(condition)


async def test_what_never_comes_is_named() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.05 s: three events; last seen: 0"):
        await eventually(lambda: 0, "three events", timeout_s=0.05)


async def test_what_a_test_registers_is_deleted(broker_url: str, unique: str) -> None:
    registered = Cleanup(broker_url)
    queue = registered.queue(unique, retry_delays=("5s",))
    exchange = registered.exchange(unique)
    connection = await aio_pika.connect(broker_url)
    async with connection:
        channel = await connection.channel()
        for name in (queue, f"{queue}.dlq", f"{queue}.retry.5s"):
            await channel.declare_queue(name, durable=True)
        await channel.declare_exchange(exchange)
        await registered.delete_all()
        for name in (queue, f"{queue}.dlq", f"{queue}.retry.5s"):
            probe = await connection.channel()
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await probe.get_queue(name)
        probe = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await probe.get_exchange(exchange)
