"""Starting: on a broker that is not there yet, says no, or has something else in place."""

from __future__ import annotations

import asyncio
from functools import partial
from urllib.parse import urlsplit

import pytest

from evworker.broker import BrokerRefusedError, TopologyMismatchError
from evworker.workers import Retry, Worker, plan_topology
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.workers.stage import ANY_VERSION, OrderPlaced, Seen, Stage, running, until_ready


async def test_a_worker_waits_for_a_broker_that_is_not_there_yet(
    stage: Stage, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    worker = stage.worker(stage.plugin(seen, OrderPlaced), url=proxy.url)
    async with running(worker) as run:
        await eventually(lambda: "Connect call failed" in caplog.text, "it has tried in vain")
        assert not run.done()
        assert not worker.ready.is_set()
        await proxy.open()
        await until_ready(worker)
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: len(seen) == 1)


async def test_a_worker_that_waits_for_its_broker_can_be_stopped(
    stage: Stage, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    worker = stage.worker(stage.plugin(Seen()), url=proxy.url)
    run = asyncio.create_task(worker.run())
    await eventually(lambda: "Connect call failed" in caplog.text)
    worker.stop()
    await asyncio.wait_for(run, 10)
    assert not worker.ready.is_set()


def other_login(url: str, user: str = "guest", password: str = "guest", vhost: str = "") -> str:
    parts = urlsplit(url)
    return f"amqp://{user}:{password}@{parts.hostname}:{parts.port}/{vhost}"


async def test_a_wrong_password_is_told_and_not_tried_again(stage: Stage) -> None:
    url = other_login(stage.url, password="not-the-password")
    worker = stage.worker(stage.plugin(Seen()), url=url)
    with pytest.raises(BrokerRefusedError, match="refused the login of 'guest'") as refused:
        await asyncio.wait_for(worker.run(), 30)
    assert "not-the-password" not in str(refused.value)


async def test_a_missing_virtual_host_is_told_and_not_tried_again(stage: Stage) -> None:
    worker = stage.worker(stage.plugin(Seen()), url=other_login(stage.url, vhost="nowhere"))
    with pytest.raises(BrokerRefusedError, match="virtual host 'nowhere'"):
        await asyncio.wait_for(worker.run(), 30)


async def declare_otherwise(stage: Stage, queue: str, arguments: dict[str, str | int]) -> None:
    channel = await stage.connection.channel()
    await channel.queue_declare(queue, durable=True, arguments=dict(arguments))
    await channel.close()
    await stage.send(b'{"order_id": "kept"}', queue=queue, message_type="orders.placed")


@pytest.mark.parametrize(
    ("name", "argument", "found"),
    [
        ("charge", "x-dead-letter-routing-key", "elsewhere"),
        ("charge.dlq", "x-delivery-limit", 20),
        ("charge.retry.1h", "x-message-ttl", 1_000),
    ],
)
async def test_another_definition_is_explained_and_nothing_is_deleted(
    stage: Stage, name: str, argument: str, found: str | int
) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, OrderPlaced, retry=Retry("1h"))
    queue = stage.queue(name)
    planned = plan_topology([plugin], exchange=stage.exchange, version=ANY_VERSION).queues
    (arguments,) = (dict(planned.arguments) for planned in planned if planned.name == queue)
    expected = arguments[argument]
    await declare_otherwise(stage, queue, {**arguments, argument: found})
    with pytest.raises(TopologyMismatchError) as mismatch:
        await stage.worker(plugin).run()
    (difference,) = mismatch.value.differences
    assert (difference.kind, difference.name, difference.state) == ("queue", queue, "different")
    assert (difference.argument, difference.expected, difference.found) == (
        argument,
        str(expected),
        str(found),
    )
    told = f"queue {queue!r}: {argument} should be {expected}, but is {found}"
    assert told in str(mismatch.value)
    work_queue = queue.partition(".retry.")[0].removesuffix(".dlq")
    assert f'queue="{work_queue}.v2"' in str(mismatch.value)
    assert await stage.waiting_in(queue) == 1
    assert len(seen) == 0


async def test_every_difference_is_told_at_once(stage: Stage) -> None:
    for name in ("charge", "charge.dlq"):
        await declare_otherwise(stage, stage.queue(name), {"x-queue-type": "classic"})
    with pytest.raises(TopologyMismatchError) as mismatch:
        await stage.worker(stage.plugin(Seen())).run()
    assert {difference.name for difference in mismatch.value.differences} == {
        stage.queue("charge"),
        stage.queue("charge.dlq"),
    }


async def test_an_exchange_of_another_kind_is_explained(stage: Stage) -> None:
    name = f"{stage.exchange}.other"
    channel = await stage.connection.channel()
    await channel.exchange_declare(name, exchange_type="direct", durable=True)
    await channel.close()
    other = Stage(stage.url, name, stage._cleanup)  # noqa: SLF001 - it shares the first one's end
    with pytest.raises(TopologyMismatchError, match=f"exchange '{name}'"):
        await other.worker(other.plugin(Seen())).run()


async def test_starting_again_finds_everything_in_place(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, OrderPlaced, retry=Retry("1h", "2h"), priorities=5)
    for number in range(3):
        async with stage.working(plugin) as worker:
            await stage.publish(OrderPlaced(order_id=str(number)))
            await eventually(partial(has_handled_one, worker))
    assert len(seen) == 3


def has_handled_one(worker: Worker) -> bool:
    return worker.counts.handled == 1


async def test_two_workers_share_a_queue(stage: Stage) -> None:
    one, other = Seen(), Seen()
    name = stage.queue("charge")
    async with (
        stage.working(stage.plugin(one, OrderPlaced, prefetch=1, concurrency=1)),
        stage.working(stage.plugin(other, OrderPlaced, prefetch=1, concurrency=1)),
    ):
        for number in range(100):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: len(one) + len(other) == 100)
    assert len(one) > 0
    assert len(other) > 0
    assert await stage.waiting_in(name) == 0
