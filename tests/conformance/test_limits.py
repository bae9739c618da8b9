"""Limits of time, length and size, and priorities."""

from __future__ import annotations

from pamqp.commands import Basic

from tests.conformance.client import Channel
from tests.conformance.conftest import QUORUM, New, Target


async def outcomes(ch: Channel, queue: str, count: int) -> list[bool]:
    """Publish one after the other; which were acked."""
    acked = []
    for number in range(count):
        ch.publish(queue, str(number).encode())
        acked.append(await ch.confirmed())
    return acked


async def test_the_oldest_go_first(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind, "x-max-length": 3})
    await ch.put(queue, *"abcde")
    await ch.counts(queue, 3)
    assert await ch.take(queue) == ["c", "d", "e"]


async def test_bytes_of_bodies_are_counted(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind, "x-max-length-bytes": 10})
    await ch.put(queue, "1234", "5678", "90", "a")
    await ch.counts(queue, 3)
    assert await ch.take(queue) == ["5678", "90", "a"]


async def test_what_is_delivered_takes_no_room(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind, "x-max-length": 1})
    await ch.put(queue, "held")
    await ch.get(queue, no_ack=False)
    await ch.put(queue, "a")
    assert await ch.take(queue) == ["a"]


async def test_a_full_classic_queue_refuses(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    assert await outcomes(ch, queue, 4) == [True, True, False, False]
    await ch.get(queue)
    assert await outcomes(ch, queue, 2) == [True, False]


async def test_a_full_quorum_queue_refuses_when_it_notices(ch: Channel, new: New) -> None:
    queue = new("q")
    full = {"x-max-length": 5, "x-overflow": "reject-publish"}
    await ch.declare(queue, arguments={**QUORUM, **full})
    assert await outcomes(ch, queue, 6) == [True] * 6
    ch.publish(queue)
    assert not await ch.confirmed()
    await ch.get(queue)
    await ch.counts(queue, 5)
    ch.publish(queue)
    assert not await ch.confirmed()  # it takes more when a fifth is free
    await ch.get(queue)
    await ch.counts(queue, 4)
    ch.publish(queue)
    assert await ch.confirmed()


async def test_what_is_refused_can_be_dead_lettered(ch: Channel, new: New) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(letters)
    await ch.declare(
        queue,
        arguments={
            "x-max-length": 1,
            "x-overflow": "reject-publish-dlx",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": letters,
        },
    )
    assert await outcomes(ch, queue, 2) == [True, False]
    letter = await ch.arrives(letters)
    assert (letter.text, letter.headers["x-death"][0]["reason"]) == ("1", "maxlen")


async def test_one_full_queue_of_two_refuses_for_both(ch: Channel, new: New) -> None:
    x, full, other = new("x"), new("full"), new("other")
    await ch.exchange(x, "fanout")
    await ch.declare(full, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    await ch.declare(other)
    for queue in (full, other):
        await ch.bind(queue, x)
    ch.publish("", b"a", exchange=x)
    assert not await ch.confirmed()
    assert (await ch.arrives(other)).text == "a"


async def test_what_is_over_is_gone(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind, "x-message-ttl": 20})
    await ch.put(queue, "a", "b")
    await ch.counts(queue, 0)


async def test_the_shorter_time_counts(ch: Channel, new: New, kind: str) -> None:
    one, two = new("one"), new("two")
    await ch.declare(one, arguments={"x-queue-type": kind, "x-message-ttl": 20})
    await ch.declare(two, arguments={"x-queue-type": kind, "x-message-ttl": 60_000})
    await ch.put(one, "a", expiration="60000")
    await ch.put(two, "a", expiration="20")
    await ch.counts(one, 0)
    await ch.counts(two, 0)


async def test_a_short_time_waits_behind_a_long_one(ch: Channel, new: New, kind: str) -> None:
    queue, early = new("q"), new("early")
    for name in (queue, early):
        await ch.declare(name, arguments={"x-queue-type": kind})
    await ch.put(queue, "long", expiration="60000")
    await ch.put(queue, "short", expiration="10")
    await ch.put(early, "probe", expiration="100")
    await ch.counts(early, 0)
    assert await ch.count(queue) == 2
    assert (await ch.arrives(queue)).text == "long"
    await ch.counts(queue, 0)


async def test_what_is_delivered_does_not_age(ch: Channel, new: New, kind: str) -> None:
    queue, probe = new("q"), new("probe")
    for name in (queue, probe):
        await ch.declare(name, arguments={"x-queue-type": kind})
    await ch.put(queue, "held", expiration="20")
    held = await ch.arrives(queue, no_ack=False)
    await ch.put(probe, "probe", expiration="40")
    await ch.counts(probe, 0)
    ch.send(Basic.Ack(held.tag))
    await ch.declare(queue, arguments={"x-queue-type": kind})  # the channel lives


async def test_what_comes_back_too_late_is_over(ch: Channel, new: New, kind: str) -> None:
    queue, probe = new("q"), new("probe")
    for name in (queue, probe):
        await ch.declare(name, arguments={"x-queue-type": kind})
    await ch.put(queue, "held", expiration="20")
    held = await ch.arrives(queue, no_ack=False)
    await ch.put(probe, "probe", expiration="40")
    await ch.counts(probe, 0)
    ch.send(Basic.Reject(held.tag, requeue=True))
    await ch.counts(queue, 0)


async def test_no_time_at_all_is_enough_for_who_waits(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-message-ttl": 0})
    await ch.put(queue, "missed")
    await ch.consume(queue, no_ack=True)
    await ch.put(queue, "caught")
    assert await ch.bodies(1) == ["caught"]


# Priorities


async def test_the_higher_priority_first(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-max-priority": 3})
    for priority in (0, 3, 1, None, 9, 2):
        await ch.put(queue, str(priority), priority=priority)
    assert await ch.take(queue) == ["3", "9", "2", "1", "0", "None"]


async def test_who_comes_back_keeps_the_priority(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-max-priority": 3})
    for priority in (0, 3, 1, 2):
        await ch.put(queue, str(priority), priority=priority)
    held = [await ch.get(queue, no_ack=False) for _ in range(2)]
    assert held[-1] is not None
    ch.send(Basic.Nack(held[-1].tag, multiple=True, requeue=True))
    await ch.counts(queue, 4)
    assert await ch.take(queue) == ["3", "2", "1", "0"]


async def test_a_quorum_queue_prefers_high_ones_two_to_one(
    target: Target, ch: Channel, new: New
) -> None:
    queue = new("q")
    await ch.declare(queue, arguments=QUORUM)
    sent = [f"{p}-{n}" for n, p in enumerate((0, 5, 4, 9, 0, 9, 9, 0, 9, 9, 9, 0))]
    for text in sent:
        await ch.put(queue, text, priority=int(text[0]))
    taken = ["5-1", "9-3", "0-0", "9-5", "9-6", "4-2", "9-8", "9-9", "0-4", "9-10", "0-7", "0-11"]
    assert await ch.take(queue) == (taken if target.is_4 else sent)
