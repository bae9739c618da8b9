"""What a retried or dead-lettered copy keeps of its message, and what it must not keep.

The traps are those of RabbitMQ with republished messages: dead-letter cycles, validated user ids,
messages that expire, copies for CC, and headers that pamqp reads but can't write.
"""

from __future__ import annotations

import json
import logging
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.encode
import pytest
from structlog.testing import capture_logs

from evworker.broker import BrokerVersion
from evworker.workers import Context, Retry
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Seen, Stage, headers_of


async def fail(event: Any, ctx: Context) -> None:
    raise OutOfLuckError("no luck")


def failing_twice(seen: Seen) -> Any:
    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        raise OutOfLuckError(f"attempt {ctx.attempt}")

    return charge


@pytest.mark.parametrize("retry", [Retry(), Retry(SOON)], ids=["dead letter", "retry"])
async def test_what_the_broker_would_refuse_or_act_upon_is_stripped(
    stage: Stage, retry: Retry
) -> None:
    seen = Seen()
    queue = stage.queue("charge")
    copies = [await stage.bound_queue("copies.cc"), await stage.bound_queue("copies.bcc")]
    plugin = stage.plugin(failing_twice(seen), "orders.*", retry=retry)
    await stage.declare(plugin)
    await stage.send(
        b'{"n": 1}',
        topic="orders.placed",
        message_id="m-1",
        user_id="guest",
        expiration="60000",
        # The first of each routes a copy on the exchange; the others would on the default one.
        headers={"CC": ["copies.cc", *copies], "BCC": ["copies.bcc", *copies], "tenant": "acme"},
    )
    worker = await stage.work(plugin)
    assert len(seen) == len(retry.delays_s) + 1
    # One copy each, of the first publish and of no republish.
    assert [await stage.waiting_in(copy) for copy in copies] == [1, 1]
    assert worker.counts.dead_lettered == {"failed": 1}
    message = await stage.raw(f"{queue}.dlq")
    assert message.user_id is None
    assert message.expiration is None
    assert not {"CC", "BCC", "x-death"} & set(message.headers)
    assert message.headers["evw-user-id"] == "guest"
    assert message.headers["tenant"] == "acme"
    assert message.message_id == "m-1"


async def test_no_round_through_a_retry_queue_is_taken_for_a_cycle(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        raise OutOfLuckError

    rounds = 12
    plugin = stage.plugin(charge, "orders.*", retry=Retry(*[SOON] * rounds))
    await stage.declare(plugin)
    await stage.send(
        topic="orders.placed",
        headers={
            # As after a dead-lettering by the broker: 3.x drops a message that comes by here again.
            "x-death": [
                {
                    "queue": f"{stage.queue('charge')}.retry.{SOON}",
                    "reason": "rejected",
                    "count": 1,
                    "exchange": "",
                    "routing-keys": ["orders.placed"],
                    "time": datetime.now(UTC),
                }
            ],
            "x-first-death-queue": stage.queue("charge"),
        },
    )
    await stage.work(plugin)
    assert seen.attempts == list(range(1, rounds + 2))
    assert (await stage.letter(stage.queue("charge"))).failure.attempts == rounds + 1


async def test_foreign_headers_and_properties_survive_every_attempt(stage: Stage) -> None:
    seen = Seen()
    moment = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    headers = {
        "text": "grün",
        "number": 42,
        "negative": -1,
        "long": 2**62,
        "flag": True,
        "nothing": None,
        "half": 0.5,
        "price": Decimal("9.90"),
        "moment": moment,
        "table": {"inner": {"deep": [1, "two", None]}},
        "list": ["a", 1, {"b": False}],
        "binary": bytearray(b"\x00\xff"),
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    plugin = stage.plugin(failing_twice(seen), retry=Retry(SOON, SOON))
    await stage.declare(plugin)
    await stage.send(
        b'{"n": 1}',
        topic="orders.placed",
        headers=headers,
        priority=7,
        correlation_id="c-1",
        reply_to="answers",
        message_id="m-1",
        message_type="orders.placed",
        app_id="legacy",
        timestamp=moment,
        content_encoding="utf-8",
    )
    await stage.work(plugin)
    assert seen.attempts == [1, 2, 3]
    message = await stage.raw(f"{stage.queue('charge')}.dlq")
    kept = {name: value for name, value in message.headers.items() if name in headers}
    assert kept == headers
    assert (message.priority, message.correlation_id, message.reply_to) == (7, "c-1", "answers")
    assert (message.message_id, message.type, message.app_id) == ("m-1", "orders.placed", "legacy")
    assert (message.timestamp, message.content_encoding) == (moment, "utf-8")
    assert message.content_type == "application/json"


class NotUtf8(str):
    """Text that another client, with other ideas of encoding, writes as these bytes."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"caf\xe9"


class Double(float):
    """A number that another client writes with 64 bits; pamqp writes 32 and fails on large ones."""

    __slots__ = ()


@pytest.fixture
def doubles_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    encode_any = pamqp.encode.encode_table_value

    def encode_double(value: Any) -> bytes:
        if isinstance(value, Double):
            return b"d" + struct.pack(">d", value)
        return encode_any(value)

    monkeypatch.setattr(pamqp.encode, "encode_table_value", encode_double)


@pytest.mark.usefixtures("doubles_are_written")
async def test_headers_that_pamqp_can_read_but_not_write_do_no_harm(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(failing_twice(seen), retry=Retry(SOON))
    await stage.declare(plugin)
    headers = {
        "latin": NotUtf8("café"),
        "nested": {"latin": NotUtf8("café"), "list": [NotUtf8("café")]},
        "double": Double(0.1),
        "huge": Double(1e300),
    }
    await stage.send(topic="orders.placed", headers=headers)
    worker = await stage.work(plugin)
    assert seen.attempts == [1, 2]
    assert worker.counts.dead_lettered == {"failed": 1}
    kept = headers_of(await stage.letter(stage.queue("charge")))
    assert kept["latin"] == bytearray(b"caf\xe9")
    assert (kept["double"], kept["huge"]) == ("0.1", "1e+300")
    assert kept["nested"] == {"latin": bytearray(b"caf\xe9"), "list": [bytearray(b"caf\xe9")]}


def fail_at_length(depth: int) -> None:
    """With all the text and trace that a letter may carry."""
    if depth:
        fail_at_length(depth - 1)
    raise OutOfLuckError("x" * 10_000)


@pytest.mark.parametrize("kilobytes", [60, 100, 119, 125])
async def test_headers_near_the_frame_limit_do_not_cost_the_connection(
    stage: Stage, kilobytes: int
) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        fail_at_length(100)

    plugin = stage.plugin(charge, retry=Retry(SOON))
    await stage.declare(plugin)
    await stage.send(
        b'{"n": 1}',
        topic="orders.placed",
        message_id="m-1",
        headers={"large": "x" * kilobytes * 1024, "small": "kept"},
    )
    worker = await stage.work(plugin)
    assert seen.attempts == [1, 2]
    assert worker.counts.dead_lettered == {"failed": 1}
    letter = await stage.letter(stage.queue("charge"))
    assert (letter.failure.error_message or "").startswith("xxx")
    assert (letter.id, letter.body, letter.headers["small"]) == ("m-1", b'{"n": 1}', "kept")
    if "large" not in letter.headers:
        assert kilobytes > 100
        assert letter.headers["evw-dropped-headers"] == "large"


async def test_a_foreign_message_keeps_its_topic_and_gets_one_stable_id(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(failing_twice(seen), "orders.#", retry=Retry(SOON, SOON))
    await stage.declare(plugin)
    await stage.send(b'{"n": 1}', topic="orders.eu.placed", content_type=None, delivery_mode=None)
    await stage.work(plugin)
    assert seen.topics == ["orders.eu.placed"] * 3
    assert len(set(seen.ids)) == 1
    letter = await stage.letter(stage.queue("charge"))
    assert (letter.id, letter.topic) == (seen.ids[0], "orders.eu.placed")
    assert letter.failure.origin_routing_key == "orders.eu.placed"
    assert letter.body == b'{"n": 1}'
    assert (await stage.raw(f"{stage.queue('charge')}.dlq")).delivery_mode == 2


async def test_a_structured_event_without_properties_keeps_its_own_id(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(failing_twice(seen), OrderPlaced, retry=Retry(SOON))
    await stage.declare(plugin)
    document = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/legacy",
        "type": "orders.placed",
        "data": {"order_id": "42"},
    }
    await stage.send(
        json.dumps(document).encode(),
        topic="orders.placed",
        content_type="application/cloudevents+json; charset=utf-8",
    )
    await stage.work(plugin)
    assert seen.ids == ["e-1", "e-1"]
    assert seen.events[0] == OrderPlaced(order_id="42")
    assert (await stage.raw(f"{stage.queue('charge')}.dlq")).message_id == "e-1"


async def test_evw_headers_that_someone_spoilt_count_as_absent(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(failing_twice(seen), retry=Retry(SOON))
    await stage.declare(plugin)
    await stage.send(
        topic="orders.placed",
        headers={
            "evw-attempt": "many",
            "evw-first-failed-at": "yesterday",
            "evw-origin-routing-key": 5,
            "evw-error": ["?"],
        },
    )
    await stage.work(plugin)
    assert seen.attempts == [1, 2]
    assert seen.topics == ["orders.placed"] * 2
    letter = await stage.letter(stage.queue("charge"))
    assert letter.failure.first_failed_at is not None
    assert letter.failure.origin_routing_key == "orders.placed"


async def test_a_large_body_is_retried_and_kept(stage: Stage) -> None:
    body = json.dumps({"text": "x" * (4 * 1024 * 1024)}).encode()
    plugin = stage.plugin(fail, retry=Retry(SOON))
    await stage.declare(plugin)
    await stage.send(body, topic="orders.placed")
    worker = await stage.work(plugin)
    assert (worker.counts.retried, worker.counts.dead_lettered) == (1, {"failed": 1})
    assert (await stage.letter(stage.queue("charge"))).body == body


async def test_two_messages_of_one_id_are_each_settled(stage: Stage) -> None:
    # aiormq tells returned messages apart by their id alone (trap 5).
    seen = Seen()
    plugin = stage.plugin(failing_twice(seen), retry=Retry(SOON))
    await stage.declare(plugin)
    for number in range(20):
        await stage.send(
            json.dumps({"n": number}).encode(), topic="orders.placed", message_id="same"
        )
    worker = await stage.work(plugin)
    assert (worker.counts.retried, worker.counts.dead_lettered) == (20, {"failed": 20})
    letters = await stage.letters(stage.queue("charge"))
    assert sorted(json.loads(letter.body)["n"] for letter in letters) == list(range(20))


async def test_priority_decides_who_is_next_and_survives_a_retry(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt == 1:
            raise OutOfLuckError

    plugin = stage.plugin(
        charge, OrderPlaced, retry=Retry("1s"), priorities=5, concurrency=1, prefetch=1
    )
    await stage.declare(plugin)
    for priority in (0, 3, 5, 1):
        await stage.publish(OrderPlaced(order_id=str(priority)), priority=priority)
    worker = stage.worker(plugin, max_events=4)
    await worker.run()
    assert [event.order_id for event in seen.events] == ["5", "3", "1", "0"]
    queue = stage.queue("charge")

    async def back() -> bool:
        return await stage.waiting_in(queue) == 4

    await eventually(back)
    await stage.work(plugin)
    assert [event.order_id for event in seen.events[4:]] == ["5", "3", "1", "0"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# What came before the broker's limit was lowered: a copy of it would be refused for ever


@pytest.mark.parametrize("retry", [Retry(), Retry(SOON)], ids=["dead letter", "retry"])
async def test_what_is_too_large_for_a_copy_is_dead_lettered_by_the_broker(
    stage: Stage, retry: Retry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokerVersion, "max_message_bytes", 20)
    plugin = stage.plugin(fail, OrderPlaced, retry=retry)
    await stage.declare(plugin)
    body = b'{"order_id": "too long by one"}'
    await stage.send(body, headers={"tenant": "acme"})
    with capture_logs() as logs:
        worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 1}
    letter = await stage.letter(plugin.consumers[0].queue)
    assert letter.body == body
    assert headers_of(letter) == {"tenant": "acme"}
    (told,) = (line for line in logs if "too large" in line["event"])
    assert (told["reason"], told["error"]) == ("failed", "no luck")


async def test_where_the_broker_could_lose_it_it_is_held(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokerVersion, "max_message_bytes", 20)
    plugin = stage.plugin(fail, OrderPlaced, priorities=2)
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    await stage.send(b'{"order_id": "too long by one"}')
    with capture_logs() as logs:
        async with stage.working(plugin) as worker:
            await eventually(lambda: [line for line in logs if line.get("to") == f"{queue}.dlq"])
            worker.stop()
            worker.stop()
    assert worker.counts.dead_lettered == {}
    assert await stage.waiting_in(queue) == 1
