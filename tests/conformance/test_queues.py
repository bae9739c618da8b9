"""Queues: declared, asked for, declared again, purged, deleted, and gone by themselves."""

from __future__ import annotations

from typing import Any

import pytest
from pamqp.base import Frame
from pamqp.commands import Basic, Queue

from tests.conformance.client import Channel, Link, RefusedError, linked
from tests.conformance.conftest import QUORUM, New, Target
from tests.waiting import eventually


async def gone(link: Link, queue: str) -> bool:
    """Whether there is no such queue."""
    channel = await link.channel()
    try:
        await channel.count(queue)
    except RefusedError as refusal:
        return refusal.code == 404
    return False


async def test_a_queue_counts_messages_and_consumers(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    arguments = {"x-queue-type": kind}
    answer = await ch.declare(queue, arguments=arguments)
    assert (answer.queue, answer.message_count, answer.consumer_count) == (queue, 0, 0)
    await ch.put(queue, "1", "2")
    await ch.counts(queue, 2)
    await ch.consume(queue, prefetch=1)
    await ch.delivered()
    await ch.counts(queue, 1)
    answer = await ch.declare(queue, arguments=arguments)
    assert (answer.message_count, answer.consumer_count) == (1, 1)


async def test_the_broker_finds_a_name_and_remembers_the_last(ch: Channel) -> None:
    answer = await ch.declare(durable=False, exclusive=True)
    assert str(answer.queue).startswith("amq.gen-")
    await ch.call(Queue.Bind(queue="", exchange="amq.direct", routing_key=""))
    await ch.put(str(answer.queue), "m", exchange="amq.direct")
    message = await ch.call(Basic.Get(queue="", no_ack=True))
    assert message.text == "m"


async def test_without_a_last_queue_none_is_meant(ch: Channel) -> None:
    refusal = await ch.refuses(Basic.Get(queue=""))
    assert (refusal.scope, refusal.code) == ("channel", 404)


@pytest.mark.parametrize("method", [Basic.Get, Basic.Consume, Queue.Purge, Queue.Declare])
async def test_a_queue_that_is_missing(ch: Channel, new: New, method: type[Any]) -> None:
    name = new("none")
    asked = method(queue=name, passive=True) if method is Queue.Declare else method(queue=name)
    refusal = await ch.refuses(asked)
    assert (refusal.scope, refusal.code) == ("channel", 404)
    assert refusal.text == f"NOT_FOUND - no queue '{name}' in vhost '/'"


async def test_what_is_missing_is_deleted_already(ch: Channel, new: New) -> None:
    assert (await ch.call(Queue.Delete(queue=new("none")))).message_count == 0


async def test_a_queue_is_deleted_with_its_messages(link: Link, ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.put(queue, "1", "2")
    assert (await ch.call(Queue.Delete(queue=queue))).message_count == 2
    assert await gone(link, queue)


@pytest.mark.parametrize(
    ("options", "told"), [({"if_empty": True}, "not empty"), ({"if_unused": True}, "in use")]
)
async def test_a_queue_is_not_deleted_if(
    ch: Channel, new: New, options: dict[str, bool], told: str
) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.consume(queue, prefetch=1)
    await ch.put(queue, "1", "2", "3")
    refusal = await ch.refuses(Queue.Delete(queue=queue, **options))
    assert (refusal.scope, refusal.code) == ("channel", 406)
    assert refusal.text == f"PRECONDITION_FAILED - queue '{queue}' in vhost '/' {told}"


async def test_purging_leaves_what_is_delivered(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind})
    await ch.put(queue, "1", "2", "3")
    held = await ch.get(queue, no_ack=False)
    assert held is not None
    assert (await ch.call(Queue.Purge(queue=queue))).message_count == 2
    ch.send(Basic.Reject(held.tag, requeue=True))
    assert (await ch.arrives(queue)).text == "1"


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ({"durable": False}, 406, "arg 'durable' for {}: received 'false' but current is 'true'"),
        ({"auto_delete": True}, 406, "arg 'auto_delete' for {}: received 'true' but current is"),
        ({"exclusive": True}, 405, "cannot obtain exclusive access to locked {}"),
        (
            {"arguments": {"x-message-ttl": 7, "x-max-length": 5}},
            406,
            "arg 'x-message-ttl' for {}: received the value '7' of type",
        ),
        (
            {"arguments": {"x-max-length": 6}},
            406,
            "arg 'x-max-length' for {}: received '6' but current is '5'",
        ),
        ({"arguments": {}}, 406, "arg 'x-max-length' for {}: received none but current is the "),
        ({"arguments": {"x-max-length": 5, "x-queue-type": "quorum"}}, 406, "'x-queue-type'"),
    ],
)
async def test_a_queue_is_declared_again_only_as_it_is(
    link: Link, new: New, changed: dict[str, Any], code: int, told: str
) -> None:
    queue = new("q")
    declared = {"arguments": {"x-max-length": 5}}
    for _ in range(2):
        await (await link.channel()).declare(queue, **declared)
    with pytest.raises(RefusedError) as refused:
        await (await link.channel()).declare(queue, **{**declared, **changed})
    assert (refused.value.scope, refused.value.code) == ("channel", code)
    assert told.format(f"queue '{queue}' in vhost '/'") in refused.value.text


async def test_arguments_that_nobody_knows_are_no_difference(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.declare(queue, arguments={"x-made-up": 5})
    await ch.declare(queue, arguments={"x-queue-type": "classic"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"x-queue-type": "nope"}, "unsupported queue type 'nope'"),
        ({"x-message-ttl": -1}, "{value_negative,-1}"),
        ({"x-message-ttl": "5"}, "expected integer, got longstr"),
        ({"x-expires": 0}, "{value_zero,0}"),
        ({"x-max-length": -1}, "{value_negative,-1}"),
        ({"x-overflow": "bad"}, "invalid_overflow"),
        ({"x-max-priority": 256}, "{max_value_exceeded,256}"),
        ({"x-dead-letter-routing-key": "a"}, "routing_key_but_no_dlx_defined"),
        ({"x-dead-letter-exchange": 4}, "for arg 'x-dead-letter-exchange' in queue"),
        ({"x-delivery-limit": 4}, "of queue type rabbit_classic_queue"),
        (
            {"x-dead-letter-exchange": "", "x-dead-letter-strategy": "at-least-once"},
            "of queue type rabbit_classic_queue",
        ),
        ({**QUORUM, "x-max-priority": 5}, "of queue type rabbit_quorum_queue"),
        ({**QUORUM, "x-dead-letter-strategy": "x"}, "invalid_dlx_strategy"),
        ({"x-max-length": True}, "expected integer, got bool"),
        ({"x-max-length": None}, "expected integer, got void"),
    ],
)
async def test_wrong_arguments(ch: Channel, new: New, arguments: dict[str, Any], told: str) -> None:
    refusal = await ch.refuses(Queue.Declare(queue=new("q"), durable=True, arguments=arguments))
    assert (refusal.scope, refusal.code) == ("channel", 406)
    assert told in refusal.text


@pytest.mark.parametrize("limit", [True, "x", 1.5, None])
async def test_a_delivery_limit_may_be_anything(ch: Channel, new: New, limit: object) -> None:
    await ch.declare(new("q"), arguments={**QUORUM, "x-delivery-limit": limit})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"durable": False}, "invalid property 'non-durable'"),
        ({"exclusive": True}, "invalid property 'exclusive-owner'"),
        ({"auto_delete": True}, "invalid property 'auto-delete'"),
    ],
)
async def test_what_a_quorum_queue_cannot_be(
    ch: Channel, new: New, options: dict[str, bool], told: str
) -> None:
    declared: dict[str, Any] = {"durable": True, "arguments": QUORUM, **options}
    refusal = await ch.refuses(Queue.Declare(queue=new("q"), **declared))
    assert (refusal.scope, refusal.code) == ("channel", 406)
    assert told in refusal.text


async def test_a_quorum_queue_has_a_name(ch: Channel) -> None:
    refusal = await ch.refuses(Queue.Declare(queue="", durable=True, arguments=QUORUM))
    assert (refusal.scope, refusal.code) == ("channel", 406)


async def test_names_that_are_the_brokers(ch: Channel) -> None:
    refusal = await ch.refuses(Queue.Declare(queue="amq.mine"))
    assert (refusal.scope, refusal.code) == ("channel", 403)


async def test_a_name_that_the_broker_found_is_the_brokers(ch: Channel) -> None:
    name = str((await ch.declare(exclusive=True)).queue)
    await ch.declare(name, passive=True)
    refusal = await ch.refuses(Queue.Declare(queue=name, durable=True, exclusive=True))
    assert (refusal.scope, refusal.code) == ("channel", 403)


@pytest.mark.parametrize(
    "asked",
    [
        lambda name: Queue.Declare(queue=name, exclusive=True),
        lambda name: Queue.Declare(queue=name, passive=True),
        lambda name: Basic.Get(queue=name),
        lambda name: Basic.Consume(queue=name),
        lambda name: Queue.Bind(queue=name, exchange="amq.topic"),
        lambda name: Queue.Delete(queue=name),
        lambda name: Queue.Purge(queue=name),
    ],
    ids=["declare", "ask", "get", "consume", "bind", "delete", "purge"],
)
async def test_an_exclusive_queue_is_its_connections(
    target: Target, ch: Channel, new: New, asked: Any
) -> None:
    queue = new("q")
    await ch.declare(queue, durable=False, exclusive=True)
    async with linked(target.url) as other:
        method: Frame = asked(queue)
        refusal = await (await other.channel()).refuses(method)
    assert (refusal.scope, refusal.code) == ("channel", 405)


async def test_an_exclusive_queue_goes_with_its_connection(
    target: Target, link: Link, new: New
) -> None:
    queue = new("q")
    async with linked(target.url) as other:
        await (await other.channel()).declare(queue, durable=False, exclusive=True)
    await eventually(lambda: gone(link, queue), "the queue gone")


async def test_auto_delete_goes_with_the_last_consumer(link: Link, new: New) -> None:
    queue = new("q")
    one, two = await link.channel(), await link.channel()
    await one.declare(queue, durable=False, auto_delete=True)
    tag = await one.consume(queue)
    await two.consume(queue)
    await one.call(Basic.Cancel(tag))
    assert not await gone(link, queue)
    two.send(Basic.Ack(99))  # which closes the channel
    await two.refused()
    await eventually(lambda: gone(link, queue), "the queue gone")


async def unroutable(ch: Channel, queue: str) -> bool:
    """Whether there is no such queue. To declare it would be to use it."""
    ch.publish(queue, mandatory=True)
    await ch.next_confirm()
    return not ch.returned.empty()


async def test_a_queue_expires_that_nobody_uses(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-expires": 100})
    await eventually(lambda: unroutable(ch, queue), "the queue gone")


async def test_a_queue_does_not_expire_under_a_consumer(ch: Channel, new: New) -> None:
    used, unused = new("used"), new("unused")
    await ch.declare(used, arguments={"x-expires": 100})
    await ch.consume(used)
    await ch.declare(unused, arguments={"x-expires": 300})
    await eventually(lambda: unroutable(ch, unused), "the later queue gone")
    await ch.count(used)


async def test_consumers_are_told_that_their_queue_is_deleted(
    link: Link, ch: Channel, new: New, kind: str
) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind})
    tag = await ch.consume(queue)
    other = await link.channel()
    await other.call(Queue.Delete(queue=queue))
    assert await ch.cancelled_tag() == tag
