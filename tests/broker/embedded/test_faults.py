"""What goes wrong on demand goes wrong exactly then, and what a client sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from pamqp import commands
from pamqp.commands import Basic

from evworker.broker import (
    ConnectionLostError,
    Event,
    Publisher,
    PublishNackedError,
    PublishTimeoutError,
    UnroutableError,
)
from evworker.broker.embedded import EmbeddedBroker, Fate, Faults
from tests.conformance.client import PROTOCOL_HEADER, Channel, Link, connect, linked


class Placed(Event, topic="orders.placed"):
    number: int


async def left(broker: EmbeddedBroker) -> list[str]:
    """What is in the queue now."""
    async with linked(broker.url) as other:
        return await (await other.channel()).take("q")


async def test_nothing_goes_wrong_unless_it_is_told_to(ch: Channel, faults: Faults) -> None:
    await ch.put("q", "1", "2")
    assert faults.publishes == 2
    assert await ch.take("q") == ["1", "2"]


async def test_a_publish_is_lost(broker: EmbeddedBroker, ch: Channel, faults: Faults) -> None:
    faults.at_publish(Fate.LOST, 2)
    await ch.put("q", "1")
    ch.publish("q", b"2")
    assert (await ch.refused()).scope == "socket"
    assert await left(broker) == ["1"]


async def test_the_connection_is_cut_before_the_confirm(
    broker: EmbeddedBroker, ch: Channel, faults: Faults
) -> None:
    faults.at_publish(Fate.UNCONFIRMED, 2)
    await ch.put("q", "1")
    ch.publish("q", b"2")
    assert (await ch.refused()).scope == "socket"
    assert ch.confirms.empty()
    assert await left(broker) == ["1", "2"]


async def test_publishes_are_refused_and_returned(ch: Channel, faults: Faults) -> None:
    faults.at_publish(Fate.REFUSED, 2, times=2)
    faults.at_publish(Fate.RETURNED, 5)
    acked = []
    for number in range(6):
        ch.publish("q", str(number).encode())
        acked.append(await ch.confirmed())
    assert acked == [True, False, False, True, True, True]
    assert (await ch.returned_message()).text == "4"
    assert await ch.take("q") == ["0", "3", "5"]


async def test_a_rule_waits_for_the_publish_that_fits(ch: Channel, faults: Faults) -> None:
    await ch.declare("other")
    faults.at_publish(Fate.REFUSED, routing_key="other")
    await ch.put("q", "1", "2")
    ch.publish("other", b"3")
    assert not await ch.confirmed()
    await ch.put("other", "4")


async def test_a_publish_is_delivered_twice(ch: Channel, faults: Faults) -> None:
    faults.at_publish(Fate.DOUBLED, 2)
    await ch.put("q", *"abc")
    assert await ch.take("q") == ["a", "b", "b", "c"]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_message_is_delivered_twice_though_it_was_acked(
    link: Link, ch: Channel, faults: Faults, kind: str
) -> None:
    await ch.declare("twice", arguments={"x-queue-type": kind})
    faults.deliver_twice("twice", times=2)
    await ch.put("twice", *"abc")
    await ch.put("q", "untouched")
    await ch.consume("q")
    ch.send(Basic.Ack((await ch.delivered()).tag))
    await ch.consume("twice")
    first = [await ch.delivered() for _ in range(3)]
    ch.send(Basic.Ack(first[-1].tag, multiple=True))
    again = [await ch.delivered() for _ in range(2)]
    assert [(each.text, each.redelivered) for each in again] == [("a", True), ("b", True)]
    if kind == "quorum":
        assert [each.headers["x-delivery-count"] for each in again] == [1, 1]
    ch.send(Basic.Ack(again[-1].tag, multiple=True))
    await ch.close()
    assert await (await link.channel()).take("twice") == []


async def test_messages_overtake_each_other(ch: Channel, faults: Faults) -> None:
    faults.reverse("q", 3)
    await ch.put("q", "a", "b")
    assert await ch.get("q") is None
    await ch.put("q", "c", "d")
    assert await ch.take("q") == ["c", "b", "a", "d"]


async def test_confirms_are_withheld(ch: Channel, faults: Faults) -> None:
    faults.withhold_confirms()
    ch.publish("q", b"1")
    ch.publish("nowhere", b"2", mandatory=True)
    ch.publish("q", b"3")
    await ch.counts("q", 2)
    assert ch.confirms.empty()
    assert ch.returned.empty()
    faults.release_confirms()
    assert [(await ch.next_confirm()).delivery_tag for _ in range(3)] == [1, 2, 3]
    assert (await ch.returned_message()).text == "2"


async def test_confirms_of_a_channel_that_is_gone_are_not_released(
    link: Link, ch: Channel, faults: Faults
) -> None:
    faults.withhold_confirms()
    ch.publish("q", b"1")
    await ch.close()
    faults.release_confirms()
    other = await link.channel()
    assert await other.take("q") == ["1"]


async def test_confirms_are_delayed(ch: Channel, faults: Faults) -> None:
    faults.delay_confirms(0.05)
    ch.publish("q", b"1")
    await ch.counts("q", 1)
    assert ch.confirms.empty()
    assert await ch.confirmed()


async def test_everything_is_late_and_in_order(ch: Channel, faults: Faults) -> None:
    loop = asyncio.get_running_loop()
    faults.slow_down(0.05)
    began = loop.time()
    await ch.consume("q")
    assert loop.time() - began >= 0.05
    ch.publish("q", b"1")
    await asyncio.sleep(0)
    faults.slow_down(0.0)
    ch.publish("q", b"2")
    assert await ch.bodies(2) == ["1", "2"]


async def test_a_broker_that_does_not_read(link: Link, ch: Channel, faults: Faults) -> None:
    faults.stop_reading()
    ch.publish("q", b"1")
    waiting = asyncio.create_task(ch.call(Basic.Qos()))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    faults.read_again()
    await waiting
    assert await ch.confirmed()


async def test_nobody_connects_to_a_broker_that_does_not_read(
    broker: EmbeddedBroker, faults: Faults
) -> None:
    faults.stop_reading()
    link = await connect(broker.url)
    link.send(PROTOCOL_HEADER)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await link.connection.get()
    faults.read_again()
    await link.expect(commands.Connection.Start)
    link.abort()
    await link.close()


async def test_who_publishes_is_blocked_until_the_alarm_is_over(
    broker: EmbeddedBroker, link: Link, ch: Channel, faults: Faults
) -> None:
    async with linked(broker.url) as other:
        faults.block("disk")
        ch.publish("q", b"1")
        assert (await link.expect(commands.Connection.Blocked)).reason == "disk"
        channel = await other.channel()  # who does not publish is not blocked
        assert await channel.count("q") == 0
        faults.unblock()
        await link.expect(commands.Connection.Unblocked)
        assert await ch.confirmed()
        assert await channel.count("q") == 1


async def test_consumers_are_cancelled(ch: Channel, faults: Faults) -> None:
    tag = await ch.consume("q")
    faults.cancel_consumers("q")
    assert await ch.cancelled_tag() == tag
    await ch.put("q", "1")
    await ch.consume("q")
    assert await ch.bodies(1) == ["1"]


async def test_channels_are_closed(link: Link, ch: Channel, faults: Faults) -> None:
    other = await link.channel()
    await other.consume("q")
    await ch.put("q", "1")
    await other.delivered()
    faults.close_channels(406, "delivery acknowledgement timed out", queue="q")
    refusal = await other.refused()
    assert (refusal.scope, refusal.code) == ("channel", 406)
    assert refusal.text == "PRECONDITION_FAILED - delivery acknowledgement timed out"
    assert await ch.take("q") == ["1"]


@pytest.mark.parametrize(("code", "scope"), [(404, "channel"), (541, "connection")])
async def test_a_publish_is_refused_with_a_code(
    ch: Channel, faults: Faults, code: int, scope: str
) -> None:
    faults.at_publish(code)
    ch.publish("q", b"1")
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == (scope, code)


async def test_connections_are_closed(link: Link, faults: Faults) -> None:
    faults.close_connections()
    refusal = await link.ended()
    assert refusal is not None
    assert (refusal.code, refusal.text) == (320, "CONNECTION_FORCED - broker forced it")


async def test_connections_are_dropped(link: Link, faults: Faults) -> None:
    faults.drop_connections()
    assert await link.ended() is None


async def test_the_broker_goes_away_and_comes_back_with_what_it_had(
    broker: EmbeddedBroker, link: Link, ch: Channel, faults: Faults
) -> None:
    await ch.put("q", "1")
    faults.go_away()
    assert await link.ended() is None
    with pytest.raises(ConnectionRefusedError):
        await connect(broker.url)
    await faults.come_back()
    assert await left(broker) == ["1"]


# The same through evworker's publisher


@pytest.fixture
async def publisher(broker: EmbeddedBroker) -> AsyncIterator[Publisher]:
    async with Publisher(broker.url, exchange="events", source="test") as opened:
        yield opened


@pytest.mark.parametrize(
    ("arrange", "error"),
    [
        (lambda faults: faults.at_publish(Fate.REFUSED), PublishNackedError),
        (lambda faults: faults.at_publish(Fate.RETURNED), UnroutableError),
        (Faults.withhold_confirms, PublishTimeoutError),
        (lambda faults: faults.at_publish(Fate.UNCONFIRMED), ConnectionLostError),
        (Faults.block, PublishTimeoutError),
    ],
)
async def test_the_publisher_says_what_happened(
    publisher: Publisher, faults: Faults, arrange: Callable[[Faults], None], error: type[Exception]
) -> None:
    await publisher.publish(Placed(number=1))
    arrange(faults)
    with pytest.raises(error):
        await publisher.publish(Placed(number=2), timeout_s=0.5)
    faults.release_confirms()
    faults.unblock()


async def test_the_publisher_comes_back_after_a_cut(publisher: Publisher, faults: Faults) -> None:
    faults.drop_connections()
    with suppress(ConnectionLostError):  # it may not have noticed yet
        await publisher.publish(Placed(number=1))
    await publisher.publish(Placed(number=2))
