"""Getting and consuming: whose turn it is, how much at once, and how it is settled."""

from __future__ import annotations

from typing import Any

import pytest
from pamqp.commands import Basic

from tests.conformance.client import Channel, Link, linked
from tests.conformance.conftest import QUORUM, New, Target

LIMITED: dict[str, dict[str, Any]] = {"classic": {}, "quorum": {**QUORUM, "x-delivery-limit": 50}}
"""A quorum queue of RabbitMQ 3 puts what comes back to its end, unless it has a limit."""


@pytest.fixture
async def queue(ch: Channel, new: New, kind: str) -> str:
    name = new("q")
    await ch.declare(name, arguments=LIMITED[kind])
    return name


async def test_get_tells_what_is_left(ch: Channel, queue: str) -> None:
    await ch.put(queue, "1", "2")
    message = await ch.get(queue)
    assert message is not None
    assert (message.text, message.method.message_count) == ("1", 1)
    assert (message.method.exchange, message.method.routing_key) == ("", queue)
    await ch.get(queue)
    assert await ch.get(queue) is None


async def test_deliveries_come_in_order(ch: Channel, queue: str) -> None:
    await ch.put(queue, *"abc")
    tag = await ch.consume(queue, consumer_tag="mine")
    await ch.put(queue, "d")
    messages = [await ch.delivered() for _ in range(4)]
    assert [message.text for message in messages] == ["a", "b", "c", "d"]
    assert [message.tag for message in messages] == [1, 2, 3, 4]
    assert not any(message.redelivered for message in messages)
    assert {message.method.consumer_tag for message in messages} == {tag} == {"mine"}


async def test_no_more_than_the_prefetch(ch: Channel, queue: str) -> None:
    await ch.put(queue, *"abcd")
    await ch.consume(queue, prefetch=2)
    first, second = await ch.delivered(), await ch.delivered()
    await ch.counts(queue, 2)
    ch.send(Basic.Ack(first.tag))
    assert (await ch.delivered()).text == "c"
    ch.send(Basic.Nack(second.tag, requeue=False))
    assert (await ch.delivered()).text == "d"


async def test_without_acks_the_prefetch_does_not_count(ch: Channel, queue: str) -> None:
    await ch.put(queue, *"abcd")
    await ch.consume(queue, prefetch=1, no_ack=True)
    assert await ch.bodies(4) == ["a", "b", "c", "d"]


async def test_a_prefetch_of_the_whole_channel(ch: Channel, new: New) -> None:
    one, two = new("one"), new("two")
    for each in (one, two):
        await ch.declare(each)
        await ch.put(each, "1", "2")
    await ch.call(Basic.Qos(prefetch_count=3, global_=True))
    await ch.consume(one)
    await ch.consume(two)
    held = [await ch.delivered() for _ in range(3)]
    await ch.counts(two, 1)
    ch.send(Basic.Ack(held[0].tag))
    assert (await ch.delivered()).text == "2"


async def test_a_quorum_queue_knows_no_prefetch_of_the_whole_channel(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments=QUORUM)
    await ch.call(Basic.Qos(prefetch_count=3, global_=True))
    refusal = await ch.refuses(Basic.Consume(queue=queue))
    assert (refusal.scope, refusal.code) == ("connection", 540)


async def test_consumers_take_turns(link: Link, ch: Channel, queue: str) -> None:
    one, two = await link.channel(), await link.channel()
    await one.consume(queue)
    await two.consume(queue)
    await ch.put(queue, *"abcdef")
    assert len(await one.bodies(3)) == len(await two.bodies(3)) == 3


async def test_the_higher_consumer_comes_first(link: Link, ch: Channel, queue: str) -> None:
    low, high = await link.channel(), await link.channel()
    await low.consume(queue, arguments={"x-priority": -1})
    await high.consume(queue, prefetch=2, arguments={"x-priority": 5})
    await ch.put(queue, *"abc")
    assert (await high.bodies(2), await low.bodies(1)) == (["a", "b"], ["c"])


async def test_one_consumer_is_active_until_it_goes(
    link: Link, ch: Channel, new: New, kind: str
) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind, "x-single-active-consumer": True})
    one, two = await link.channel(), await link.channel()
    await one.consume(queue, prefetch=1)
    await two.consume(queue, prefetch=1)
    await ch.put(queue, *"abc")
    held = await one.delivered()
    one.send(Basic.Ack(held.tag))
    assert [held.text, (await one.delivered()).text] == ["a", "b"]
    await one.close()
    assert (await two.delivered()).text == "b"


@pytest.mark.parametrize("consumed", [False, True])
async def test_a_quorum_queue_with_a_single_active_consumer_lets_nobody_get(
    link: Link, ch: Channel, new: New, *, consumed: bool
) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={**QUORUM, "x-single-active-consumer": True})
    if consumed:
        await ch.consume(queue)
    refusal = await (await link.channel()).refuses(Basic.Get(queue=queue))
    assert (refusal.scope, refusal.code) == ("channel", 405)


async def test_a_classic_queue_with_a_single_active_consumer_does(
    link: Link, ch: Channel, new: New
) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-single-active-consumer": True})
    await ch.consume(queue, prefetch=1)
    await ch.put(queue, *"ab")
    assert (await ch.delivered()).text == "a"
    assert (await (await link.channel()).arrives(queue)).text == "b"


async def test_an_exclusive_consumer_is_alone(link: Link, ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    tag = await ch.consume(queue, exclusive=True)
    refusal = await (await link.channel()).refuses(Basic.Consume(queue=queue))
    assert (refusal.scope, refusal.code) == ("channel", 403)
    assert refusal.text == f"ACCESS_REFUSED - queue '{queue}' in vhost '/' in exclusive use"
    await ch.call(Basic.Cancel(tag))
    await ch.consume(queue)
    refusal = await (await link.channel()).refuses(Basic.Consume(queue=queue, exclusive=True))
    assert (refusal.scope, refusal.code) == ("channel", 403)


async def test_an_exclusive_consumer_cannot_wait_to_be_the_active_one(
    ch: Channel, new: New
) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-single-active-consumer": True})
    refusal = await ch.refuses(Basic.Consume(queue=queue, exclusive=True))
    assert (refusal.scope, refusal.code) == ("channel", 403)


async def test_a_quorum_queue_lets_it_wait(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={**QUORUM, "x-single-active-consumer": True})
    await ch.consume(queue, exclusive=True)


async def test_a_consumers_priority_is_a_number(ch: Channel, queue: str) -> None:
    refusal = await ch.refuses(Basic.Consume(queue=queue, arguments={"x-priority": "high"}))
    assert (refusal.scope, refusal.code) == ("channel", 406)


async def test_a_prefetch_is_that_of_the_consumers_after_it(ch: Channel, queue: str) -> None:
    await ch.consume(queue, prefetch=1)
    await ch.call(Basic.Qos(prefetch_count=0))
    await ch.put(queue, "a", "b")
    held = await ch.delivered()
    await ch.counts(queue, 1)
    ch.send(Basic.Ack(held.tag))
    assert (await ch.delivered()).text == "b"


async def test_a_consumers_tag_is_its_own(ch: Channel, queue: str) -> None:
    await ch.consume(queue, consumer_tag="t")
    refusal = await ch.refuses(Basic.Consume(queue=queue, consumer_tag="t"))
    assert (refusal.scope, refusal.code) == ("connection", 530)


async def test_after_a_cancel_nothing_comes_and_the_rest_can_be_settled(
    ch: Channel, queue: str
) -> None:
    tag = await ch.consume(queue)
    await ch.put(queue, "1")
    held = await ch.delivered()
    await ch.call(Basic.Cancel(tag))
    await ch.put(queue, "2")
    ch.send(Basic.Ack(held.tag))
    assert await ch.take(queue) == ["2"]
    assert ch.deliveries.empty()


async def test_an_unknown_consumer_is_cancelled_already(ch: Channel) -> None:
    assert (await ch.call(Basic.Cancel("nobody"))).consumer_tag == "nobody"


# Settlement


async def test_what_is_acked_is_gone(target: Target, ch: Channel, queue: str) -> None:
    async with linked(target.url) as other:
        channel = await other.channel()
        await ch.put(queue, *"abcd")
        await channel.consume(queue)
        messages = [await channel.delivered() for _ in range(4)]
        channel.send(Basic.Ack(messages[1].tag, multiple=True))
        await channel.call(Basic.Qos())  # the ack was read
    await ch.counts(queue, 2)
    assert await ch.take(queue) == ["c", "d"]


async def test_zero_means_all(ch: Channel, queue: str) -> None:
    await ch.put(queue, *"abc")
    await ch.consume(queue, prefetch=3)
    assert await ch.bodies(3) == ["a", "b", "c"]
    ch.send(Basic.Ack(0, multiple=True))
    ch.send(Basic.Ack(0, multiple=True))  # none are all, too
    await ch.put(queue, "d")
    assert await ch.bodies(1) == ["d"]


@pytest.mark.parametrize(
    "method",
    [Basic.Ack(9), Basic.Ack(9, multiple=True), Basic.Nack(9), Basic.Reject(9), Basic.Ack(0)],
    ids=["ack", "ack many", "nack", "reject", "ack zero"],
)
async def test_an_unknown_tag(ch: Channel, method: Basic.Ack) -> None:
    refusal = await ch.refuses(method)
    assert (refusal.scope, refusal.code) == ("channel", 406)
    assert refusal.text == f"PRECONDITION_FAILED - unknown delivery tag {method.delivery_tag}"


async def test_nothing_is_settled_twice(ch: Channel, queue: str) -> None:
    await ch.put(queue, "a")
    message = await ch.get(queue, no_ack=False)
    assert message is not None
    ch.send(Basic.Ack(message.tag))
    refusal = await ch.refuses(Basic.Ack(message.tag))
    assert (refusal.scope, refusal.code) == ("channel", 406)


@pytest.mark.parametrize("how", ["reject", "nack"])
async def test_what_comes_back_is_redelivered(ch: Channel, queue: str, how: str) -> None:
    await ch.put(queue, "a")
    message = await ch.get(queue, no_ack=False)
    assert message is not None
    assert not message.redelivered
    ch.send((Basic.Reject if how == "reject" else Basic.Nack)(message.tag, requeue=True))
    assert (await ch.arrives(queue)).redelivered


async def test_what_comes_back_in_order_is_first_again(ch: Channel, queue: str) -> None:
    await ch.put(queue, *"abcd")
    held = [await ch.get(queue, no_ack=False) for _ in range(3)]
    assert held[-1] is not None
    ch.send(Basic.Nack(held[-1].tag, multiple=True, requeue=True))
    await ch.counts(queue, 4)
    assert await ch.take(queue) == ["a", "b", "c", "d"]


async def test_what_comes_back_one_by_one(ch: Channel, queue: str, kind: str) -> None:
    await ch.put(queue, *"abcd")
    held = [await ch.get(queue, no_ack=False) for _ in range(3)]
    for message in reversed(held):
        assert message is not None
        ch.send(Basic.Nack(message.tag, requeue=True))
    await ch.counts(queue, 4)
    expected = {"classic": ["a", "b", "c", "d"], "quorum": ["c", "b", "a", "d"]}
    assert await ch.take(queue) == expected[kind]


@pytest.mark.parametrize("how", ["channel", "connection", "refusal", "socket"])
async def test_who_goes_leaves_what_is_not_settled(
    target: Target, ch: Channel, queue: str, how: str
) -> None:
    await ch.put(queue, *"abc")
    async with linked(target.url) as other:
        channel = await other.channel()
        await channel.consume(queue)
        assert await channel.bodies(3) == ["a", "b", "c"]
        match how:
            case "channel":
                await channel.close()
            case "refusal":
                await channel.refuses(Basic.Ack(99))
            case "socket":
                other.abort()
    await ch.counts(queue, 3)
    messages = [await ch.get(queue) for _ in range(3)]
    assert [(each.text, each.redelivered) for each in messages if each] == [
        ("a", True),
        ("b", True),
        ("c", True),
    ]


async def test_recover_delivers_again(ch: Channel, queue: str) -> None:
    await ch.put(queue, *"abc")
    await ch.consume(queue)
    assert await ch.bodies(3) == ["a", "b", "c"]
    await ch.call(Basic.Recover(requeue=True))
    again = [await ch.delivered() for _ in range(3)]
    assert [(each.text, each.redelivered, each.tag) for each in again] == [
        ("a", True, 4),
        ("b", True, 5),
        ("c", True, 6),
    ]


async def test_a_quorum_queue_counts_what_comes_back(target: Target, ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments=LIMITED["quorum"])
    await ch.put(queue, "a")
    counts = []
    for _ in range(3):
        message = await ch.arrives(queue, no_ack=False)
        counts.append(message.headers.get("x-delivery-count"))
        ch.send(Basic.Nack(message.tag, requeue=True))
    assert counts == [None if target.is_4 else 0, 1, 2]
