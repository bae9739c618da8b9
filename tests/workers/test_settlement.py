"""How a delivery ends: what becomes of its message, and what is written on it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evworker.broker import Event
from evworker.workers import Context, Plugin, Retry, RetryAfter
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Seen, Stage, UserRegistered


class CardDeclinedError(Exception):
    pass


class StrictlyPlaced(Event, topic="orders.placed"):
    order_id: str
    total: int

    def __post_init__(self) -> None:
        if self.total == 13:
            raise ZeroDivisionError("thirteen")


async def test_success_leaves_nothing_behind(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(seen)
    await stage.declare(plugin)
    for number in range(50):
        await stage.publish(OrderPlaced(order_id=str(number)))
    worker = await stage.work(plugin)
    assert worker.counts.handled == len(seen) == 50
    assert await stage.waiting_in(stage.queue("charge")) == 0
    assert await stage.letters(stage.queue("charge")) == []
    again = await stage.work(plugin)
    assert again.counts.settled == 0


async def test_a_failed_attempt_comes_back_and_may_succeed(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt < 3:
            raise OutOfLuckError(f"attempt {ctx.attempt}")

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON, "30ms", "40ms"))
    await stage.declare(plugin)
    envelope = await stage.publish(OrderPlaced(order_id="42"), key="k")
    worker = await stage.work(plugin)
    assert seen.attempts == [1, 2, 3]
    assert seen.events == [OrderPlaced(order_id="42")] * 3
    assert {ctx.envelope for ctx in seen.contexts} == {envelope}
    assert (worker.counts.handled, worker.counts.retried) == (1, 2)
    assert worker.counts.dead_lettered == {}
    third = seen.contexts[2].headers
    assert third["evw-error"] == "attempt 2"
    assert third["evw-origin-routing-key"] == "orders.placed"


async def test_a_failed_attempt_waits_in_the_queue_of_its_delay(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1h", "2h"))
    queue = stage.queue("charge")
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.retried == 1)
        assert await stage.waiting_in(f"{queue}.retry.1h") == 1
        assert await stage.waiting_in(f"{queue}.retry.2h") == 0
    message = await stage.raw(f"{queue}.retry.1h")
    assert message.headers["evw-attempt"] == 1
    assert message.delivery_mode == 2
    assert message.expiration is None


async def test_the_last_attempt_ends_in_the_dead_letters_with_the_failure(stage: Stage) -> None:
    seen = Seen()
    queue = stage.queue("charge")

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        seen.note(event, ctx)
        raise OutOfLuckError(f"attempt {ctx.attempt} für {event.order_id}")

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON, SOON))
    await stage.declare(plugin)
    before = datetime.now(UTC) - timedelta(seconds=1)
    envelope = await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert seen.attempts == [1, 2, 3]
    assert worker.counts.dead_lettered == {"failed": 1}
    letter = await stage.letter(queue)
    failure = letter.failure
    assert (failure.reason, failure.attempts, failure.consumer) == ("failed", 3, "charge")
    assert failure.error_type == "tests.workers.stage.OutOfLuckError"
    assert failure.error_message == "attempt 3 für 42"
    assert failure.traceback is not None
    assert "in charge" in failure.traceback
    assert (failure.origin_exchange, failure.origin_routing_key) == (
        stage.exchange,
        "orders.placed",
    )
    assert failure.first_failed_at is not None
    assert failure.failed_at is not None
    assert before < failure.first_failed_at < failure.failed_at
    assert failure.host
    assert letter.envelope == envelope
    assert letter.body == envelope.encode()


async def test_the_headers_of_a_letter_can_be_read_by_anyone(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError("no luck")

    plugin = stage.plugin(charge, OrderPlaced)
    await stage.declare(plugin)
    envelope = await stage.publish(OrderPlaced(order_id="42"), priority=3)
    await stage.work(plugin)
    message = await stage.raw(f"{stage.queue('charge')}.dlq")
    assert message.body == envelope.encode()
    assert (message.message_id, message.type, message.app_id) == (
        envelope.id,
        "orders.placed",
        "test",
    )
    assert (message.content_type, message.priority) == ("application/cloudevents+json", 3)
    assert message.delivery_mode == 2
    told = {name: value for name, value in message.headers.items() if name.startswith("evw-")}
    assert set(told) == {
        "evw-reason",
        "evw-attempt",
        "evw-error-type",
        "evw-error",
        "evw-traceback",
        "evw-first-failed-at",
        "evw-failed-at",
        "evw-frame",
        "evw-consumer",
        "evw-host",
        "evw-origin-exchange",
        "evw-origin-routing-key",
    }
    assert all(isinstance(value, str | int) for value in told.values())
    assert (told["evw-reason"], told["evw-attempt"], told["evw-error"]) == ("failed", 1, "no luck")


async def test_an_error_to_give_up_on_is_a_dead_letter_at_once(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        raise CardDeclinedError("card expired")

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1h", give_up_on=CardDeclinedError))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert seen.attempts == [1]
    assert worker.counts.dead_lettered == {"given-up": 1}
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert (failure.reason, failure.attempts) == ("given-up", 1)
    assert failure.error_message == "card expired"


async def test_a_handler_may_ask_for_a_wait_of_its_own(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise RetryAfter("100m")

    queue = stage.queue("charge")
    stage.queue("charge.retry.2h")
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("1h"))
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.retried == 1)
        # Never shorter than asked, in a queue that nobody had declared before.
        assert await stage.waiting_in(f"{queue}.retry.2h") == 1
        assert await stage.waiting_in(f"{queue}.retry.1h") == 0


async def test_a_wait_that_was_asked_for_ends_in_another_attempt(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        raise RetryAfter("1ms")

    stage.queue("charge.retry.1s")
    plugin = stage.plugin(charge, OrderPlaced, retry=Retry("5h"))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    # A burst waits for the queue that was declared on demand as well.
    worker = await stage.work(plugin)
    assert seen.attempts == [1, 2]
    assert (worker.counts.retried, worker.counts.dead_lettered) == (1, {"failed": 1})
    letter = await stage.letter(stage.queue("charge"))
    assert letter.failure.error_type == "evworker.workers.retry.RetryAfter"


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"not json", {}),
        (b"\xff\xfe\x00", {}),
        (b"", {}),
        (b'{"specversion": "1.0"}', {"content_type": "application/cloudevents+json"}),
        (b'{"a": 1', {"content_type": "application/cloudevents+json"}),
        (b"<xml/>", {"content_type": "application/xml"}),
        (b"{}", {"content_encoding": "gzip"}),
        (b"[" * 5_000, {}),
    ],
    ids=[
        "text",
        "not utf-8",
        "empty",
        "no event in it",
        "cut off",
        "xml",
        "compressed",
        "nested beyond reason",
    ],
)
async def test_what_can_not_be_read_is_a_dead_letter_at_first_sight(
    stage: Stage, body: bytes, properties: dict[str, str]
) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, retry=Retry("1h"))
    await stage.declare(plugin)
    await stage.send(body, topic="orders.placed", **properties)
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"undecodable": 1}
    letter = await stage.letter(stage.queue("charge"))
    assert letter.body == body
    assert (letter.failure.reason, letter.failure.attempts) == ("undecodable", 0)
    assert letter.failure.error_message
    assert letter.failure.error_type == "evworker.broker.errors.UndecodableError"
    assert (letter.failure.origin_exchange, letter.failure.origin_routing_key) == (
        stage.exchange,
        "orders.placed",
    )
    assert len(seen) == 0


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"order_id": 42, "total": 1}, "Expected `str`, got `int` - at `$.order_id`"),
        ({"order_id": "42"}, "missing required field `total`"),
        ({"order_id": "42", "total": 13}, "thirteen"),
    ],
    ids=["wrong type", "missing field", "refused by its own type"],
)
async def test_what_does_not_validate_never_reaches_its_handler(
    stage: Stage, data: dict[str, object], fault: str
) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, StrictlyPlaced, retry=Retry("1h"))
    await stage.declare(plugin)
    body = json.dumps(data).encode()
    await stage.send(body, topic="orders.placed", message_id="order-42")
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"invalid": 1}
    letter = await stage.letter(stage.queue("charge"))
    assert (letter.body, letter.id) == (body, "order-42")
    assert letter.failure.reason == "invalid"
    assert fault in (letter.failure.error_message or "")
    assert letter.failure.consumer == "charge"
    assert len(seen) == 0


async def test_what_no_consumer_of_the_queue_wants_is_told_so(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, "orders.*")
    await stage.declare(plugin)
    await stage.send(b'{"n": 1}', queue=stage.queue("charge"), message_type="users.registered")
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"unwanted": 1}
    letter = await stage.letter(stage.queue("charge"))
    assert (letter.failure.reason, letter.topic) == ("unwanted", "users.registered")
    assert "wants 'users.registered'; they want orders.*" in (letter.failure.error_message or "")
    assert len(seen) == 0


async def test_an_event_that_fails_in_one_consumer_is_retried_in_that_one_only(
    stage: Stage,
) -> None:
    failing, other, broad = Seen(), Seen(), Seen()
    plugin = Plugin("shop")

    async def fail(event: Any, ctx: Context) -> None:
        failing.note(event, ctx)
        raise OutOfLuckError

    retry = Retry(SOON, SOON, SOON)
    for name, handler, pattern in (
        ("failing", fail, "orders.placed"),
        ("other", other, "orders.*"),
        ("broad", broad, "#"),
    ):
        plugin.consumer(pattern, name=name, queue=stage.queue(name), retry=retry)(handler)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert failing.attempts == [1, 2, 3, 4]
    assert (len(other), len(broad)) == (1, 1)
    assert worker.counts.handled == 2
    assert await stage.letters(stage.queue("other")) == []
    assert len(await stage.letters(stage.queue("failing"))) == 1


async def test_long_errors_are_cut_to_their_bounds(stage: Stage) -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise OutOfLuckError("é" * 50_000)

    async def charge(event: Any, ctx: Context) -> None:
        deep(200)

    plugin = stage.plugin(charge)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await stage.work(plugin)
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert failure.error_message is not None
    assert failure.traceback is not None
    assert len(failure.error_message.encode()) <= 4 * 1024
    assert len(failure.traceback.encode()) <= 8 * 1024


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


async def test_an_error_that_can_not_be_printed_is_settled_all_the_same(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise UnprintableError

    plugin = stage.plugin(charge, retry=Retry(SOON))
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 1}
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert failure.error_type == "tests.workers.test_settlement.UnprintableError"


async def test_a_retry_queue_that_was_deleted_is_declared_again(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt == 1:
            raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON))
    async with stage.working(plugin):
        await stage.delete_queue(f"{stage.queue('charge')}.retry.{SOON}")
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: seen.attempts == [1, 2])


async def test_a_dead_letter_queue_that_was_deleted_is_declared_again(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    queue = stage.queue("charge")
    async with stage.working(stage.plugin(charge, OrderPlaced)) as worker:
        await stage.delete_queue(f"{queue}.dlq")
        await stage.publish(OrderPlaced(order_id="42"))
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 1})
        assert (await stage.letter(queue)).failure.reason == "failed"


async def test_in_is_handled_plus_dead_lettered_exactly(stage: Stage) -> None:
    handled: list[str] = []

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        number = int(event.order_id)
        if number % 7 == 0:
            raise CardDeclinedError
        if number % 5 == 0 or (number % 3 == 0 and ctx.attempt == 1):
            raise OutOfLuckError
        handled.append(event.order_id)

    retry = Retry(SOON, "30ms", give_up_on=CardDeclinedError)
    plugin = stage.plugin(charge, OrderPlaced, retry=retry)
    await stage.declare(plugin)
    events = [OrderPlaced(order_id=str(number)) for number in range(300)]
    await asyncio.gather(*(stage.publish(event) for event in events))
    for _ in range(10):
        await stage.send(b"not json", topic="orders.placed")
        await stage.send(b'{"order_id": 1}', topic="orders.placed")
        await stage.send(b"{}", queue=stage.queue("charge"), message_type=UserRegistered.__topic__)
    worker = await stage.work(plugin)
    given_up = sum(number % 7 == 0 for number in range(300))
    failed = sum(number % 5 == 0 and number % 7 != 0 for number in range(300))
    assert worker.counts.dead_lettered == {
        "given-up": given_up,
        "failed": failed,
        "undecodable": 10,
        "invalid": 10,
        "unwanted": 10,
    }
    assert worker.counts.handled == len(handled) == len(set(handled)) == 300 - given_up - failed
    letters = await stage.letters(stage.queue("charge"))
    assert len(letters) + len(handled) == 330
