"""The embedded broker's clock: what waits in queues waits by it, and may be let wait no longer."""

from __future__ import annotations

from evworker.broker.embedded import EmbeddedBroker
from tests.conformance.client import Channel


def dying_into(queue: str, ttl_s: int) -> dict[str, object]:
    return {
        "x-message-ttl": ttl_s * 1_000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
    }


async def test_time_that_is_put_forward_has_passed_for_what_waits(
    broker: EmbeddedBroker, ch: Channel
) -> None:
    clock = broker.clock
    assert clock.due_in_s() is None
    for name, ttl_s in (("hour", 3_600), ("minute", 60), ("day", 86_400)):
        await ch.declare(name, arguments=dying_into("q", ttl_s))
        await ch.put(name, name)
    assert [broker.ready(name) for name in ("hour", "minute", "q")] == [1, 1, 0]
    clock.put_forward(clock.due_in_s() or 0.0)
    assert (await ch.arrives("q")).text == "minute"
    assert await ch.count("hour") == 1
    clock.put_forward(86_400)
    assert [(await ch.arrives("q")).text for _ in range(2)] == ["hour", "day"]
    assert clock.due_in_s() is None


async def test_what_comes_later_waits_as_long_as_ever(broker: EmbeddedBroker, ch: Channel) -> None:
    await ch.declare("hour", arguments=dying_into("q", 3_600))
    await ch.declare("unused", arguments={"x-expires": 7_200_000})
    broker.clock.put_forward(3_600)
    await ch.put("hour", "late")
    assert await ch.count("hour") == 1
    broker.clock.put_forward(3_600)
    assert (await ch.arrives("q")).text == "late"
    assert not [*broker.queues_named("unused")]


async def test_it_tells_what_is_delivered_and_not_settled(
    broker: EmbeddedBroker, ch: Channel
) -> None:
    await ch.put("q", "1", "2", "3")
    await ch.consume("q", prefetch=1)
    await ch.delivered()
    assert (broker.ready("q"), broker.unsettled("q")) == (2, 1)
