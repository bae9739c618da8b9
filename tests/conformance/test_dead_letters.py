"""Dead letters: why they died, where they go, and what is on them."""

from __future__ import annotations

from typing import Any

import pytest
from pamqp.commands import Basic

from tests.conformance.client import Channel
from tests.conformance.conftest import QUORUM, New, Target


def to(queue: str, **more: Any) -> dict[str, Any]:
    """Arguments of a queue whose dead letters go to another."""
    named = {f"x-{name.replace('_', '-')}": value for name, value in more.items()}
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue, **named}


def at_least_once(queue: str, **more: Any) -> dict[str, Any]:
    how = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    return {**QUORUM, **to(queue, **more), **how}


async def reject(ch: Channel, queue: str) -> None:
    message = await ch.arrives(queue, no_ack=False)
    ch.send(Basic.Reject(message.tag, requeue=False))


async def test_what_is_rejected(target: Target, ch: Channel, new: New, kind: str) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(letters)
    await ch.declare(queue, arguments=to(letters, queue_type=kind))
    await ch.put(queue, "a", headers={"k": 0.5}, message_id="m", delivery_mode=2)
    await reject(ch, queue)
    letter = await ch.arrives(letters)
    assert (letter.text, letter.redelivered) == ("a", False)
    assert (letter.method.exchange, letter.method.routing_key) == ("", letters)
    assert (letter.properties.message_id, letter.properties.delivery_mode) == ("m", 2)
    (death,) = letter.headers.pop("x-death")
    assert death.pop("time").year > 2025
    assert death == {
        "count": 1,
        "exchange": "",
        "queue": queue,
        "reason": "rejected",
        "routing-keys": [queue],
    }
    expected = {
        "k": 0.5,
        "x-first-death-exchange": "",
        "x-first-death-queue": queue,
        "x-first-death-reason": "rejected",
    }
    if target.is_4:
        expected |= {
            "x-last-death-exchange": "",
            "x-last-death-queue": queue,
            "x-last-death-reason": "rejected",
        }
    assert letter.headers.items() >= expected.items()


@pytest.mark.parametrize("whose", ["the queue's", "the message's"])
async def test_what_is_over(ch: Channel, new: New, kind: str, whose: str) -> None:
    queue, letters = new("q"), new("letters")
    ttl = {"message_ttl": 20} if whose == "the queue's" else {}
    await ch.declare(letters)
    await ch.declare(queue, arguments=to(letters, queue_type=kind, **ttl))
    await ch.put(queue, "a", expiration="60000" if ttl else "20")
    letter = await ch.arrives(letters)
    (death,) = letter.headers["x-death"]
    assert (death["reason"], death["queue"]) == ("expired", queue)
    assert death["original-expiration"] == ("60000" if ttl else "20")
    assert letter.properties.expiration is None


async def test_what_had_no_room(ch: Channel, new: New, kind: str) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(letters)
    await ch.declare(queue, arguments=to(letters, queue_type=kind, max_length=2))
    await ch.put(queue, *"abc")
    letter = await ch.arrives(letters)
    assert (letter.text, letter.headers["x-death"][0]["reason"]) == ("a", "maxlen")
    assert await ch.take(queue) == ["b", "c"]


async def test_what_came_back_too_often(ch: Channel, new: New) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(letters)
    await ch.declare(queue, arguments={**QUORUM, **to(letters, delivery_limit=2)})
    await ch.put(queue, "a")
    for _ in range(3):
        message = await ch.arrives(queue, no_ack=False)
        ch.send(Basic.Nack(message.tag, requeue=True))
    letter = await ch.arrives(letters)
    assert letter.headers["x-death"][0]["reason"] == "delivery_limit"


async def test_twenty_returns_are_the_limit_unless_told_otherwise(
    target: Target, ch: Channel, new: New
) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(letters)
    await ch.declare(queue, arguments={**QUORUM, **to(letters)})
    await ch.put(queue, "a")
    for _ in range(21):
        message = await ch.arrives(queue, no_ack=False)
        ch.send(Basic.Nack(message.tag, requeue=True))
    if target.is_4:
        assert (await ch.arrives(letters)).headers["x-death"][0]["reason"] == "delivery_limit"
    else:
        await ch.arrives(queue)


async def test_no_limit_from_4_0_on(target: Target, ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={**QUORUM, "x-delivery-limit": -1})
    await ch.put(queue, "a")
    message = await ch.arrives(queue, no_ack=False)
    ch.send(Basic.Nack(message.tag, requeue=True))
    if target.is_4:
        await ch.arrives(queue)
    else:
        await ch.counts(queue, 0)  # lost


async def test_without_an_exchange_for_them_they_are_gone(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind})
    await ch.put(queue, "a", "b")
    await reject(ch, queue)
    await ch.counts(queue, 1)
    assert await ch.take(queue) == ["b"]


async def test_the_routing_key_stays_unless_another_is_told(ch: Channel, new: New) -> None:
    x, queue, letters = new("x"), new("q"), new("letters")
    await ch.exchange(x, "topic")
    await ch.declare(queue, arguments={"x-dead-letter-exchange": x})
    await ch.declare(letters)
    await ch.bind(letters, x, "#")
    await ch.put(queue, "a", headers={"CC": [new("cc")], "BCC": [new("bcc")]})
    await reject(ch, queue)
    letter = await ch.arrives(letters)
    assert (letter.method.exchange, letter.method.routing_key) == (x, queue)
    assert letter.headers["x-death"][0]["routing-keys"] == [queue, letter.headers["CC"][0]]


async def test_deaths_are_counted_the_last_first(ch: Channel, new: New, kind: str) -> None:
    work, wait = new("work"), new("wait")
    await ch.declare(work, arguments=to(wait, queue_type=kind))
    await ch.declare(wait, arguments=to(work, queue_type=kind, message_ttl=1))
    await ch.put(work, "a")
    for _ in range(2):
        await reject(ch, work)
    letter = await ch.arrives(work)
    deaths = [
        (death["queue"], death["reason"], death["count"]) for death in letter.headers["x-death"]
    ]
    assert deaths == [(wait, "expired", 2), (work, "rejected", 2)]
    assert letter.headers["x-first-death-queue"] == work


async def test_what_nobody_rejected_does_not_go_round(ch: Channel, new: New, kind: str) -> None:
    one, two = new("one"), new("two")
    await ch.declare(one, arguments=to(two, queue_type=kind, message_ttl=20))
    await ch.declare(two, arguments=to(one, queue_type=kind, message_ttl=20))
    probe = new("probe")
    await ch.put(one, "round")
    await ch.declare(probe, arguments=to(probe + ".over", message_ttl=300))
    await ch.declare(probe + ".over", exclusive=True, durable=False)
    await ch.put(probe, "later")
    await ch.arrives(probe + ".over")
    assert (await ch.take(one), await ch.take(two)) == ([], [])


async def test_headers_of_an_earlier_life(target: Target, ch: Channel, new: New) -> None:
    queue, letters = new("q"), new("letters")
    old = [{"queue": "old", "reason": "expired", "count": 3, "exchange": "e", "routing-keys": []}]
    await ch.declare(letters)
    await ch.declare(queue, arguments={**QUORUM, **to(letters)})
    await ch.put(queue, "a", headers={"x-death": old, "k": 1})
    message = await ch.arrives(queue, no_ack=False)
    assert message.headers["x-death"] == old
    ch.send(Basic.Reject(message.tag, requeue=False))
    letter = await ch.arrives(letters)
    queues = [death["queue"] for death in letter.headers["x-death"]]
    assert queues == ([queue] if target.is_4 else [queue, "old"])


async def test_at_least_once_arrives(ch: Channel, new: New) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(letters, arguments=QUORUM)
    await ch.declare(queue, arguments=at_least_once(letters, message_ttl=20))
    await ch.put(queue, *"abc")
    await ch.counts(letters, 3)
    assert await ch.take(letters) == ["a", "b", "c"]


async def test_at_most_once_loses_what_has_nowhere_to_go(ch: Channel, new: New) -> None:
    queue, letters = new("q"), new("letters")
    await ch.declare(queue, arguments={**QUORUM, **to(letters, message_ttl=20)})
    await ch.put(queue, "a")
    await ch.counts(queue, 0)
    await ch.declare(letters)
    assert await ch.take(letters) == []


async def test_letters_that_wait_for_a_queue_are_not_counted(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments=at_least_once(new("none"), message_ttl=20))
    await ch.put(queue, "a")
    await ch.counts(queue, 0)


async def test_letters_that_wait_for_a_queue_take_room(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue, arguments=at_least_once(new("none"), message_ttl=20, max_length=1))
    await ch.put(queue, "a", "b")
    await ch.counts(queue, 0)
    ch.publish(queue, b"c")
    assert not await ch.confirmed()
