"""Messages that no client should write, and one did: they cost nobody but themselves anything."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from aiormq import spec
from structlog.testing import capture_logs

from evworker.workers import Context, Plugin, Retry
from evworker.workers import lane as lane_module
from evworker.workers.retry import RetryAfter
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Seen, Stage

BAD_TEXT = b"\x02\xff\xfe"
MICROSECONDS = struct.pack(">Q", 1_760_000_000_000_000)


def table(entry: bytes) -> bytes:
    return struct.pack(">I", len(entry)) + entry


HOSTILE = {
    "a timestamp in microseconds": {"timestamp": MICROSECONDS},
    "a message id that is not UTF-8": {"message_id": BAD_TEXT},
    "a type that is not UTF-8": {"message_type": BAD_TEXT},
    "a correlation id that is not UTF-8": {"correlation_id": BAD_TEXT},
    "a header's name that is not UTF-8": {"headers": table(BAD_TEXT + b"t\x01")},
    "a header with a timestamp in microseconds": {"headers": table(b"\x01aT" + MICROSECONDS)},
    "a table in a header whose name is not UTF-8": {
        "headers": table(b"\x01aF" + table(BAD_TEXT + b"t\x01"))
    },
}


class Marshalled(spec.Basic.Properties):
    """Properties as another client's bytes."""

    def __init__(self, fields: dict[str, bytes]) -> None:
        super().__init__()
        self.__dict__["fields"] = fields

    def marshal(self) -> bytes:
        fields: dict[str, bytes] = self.__dict__["fields"]
        flags = sum(self.flags[name] for name in fields)
        return struct.pack(">H", flags) + b"".join(
            fields[name] for name in self.__slots__ if name in fields
        )


async def send(stage: Stage, fields: dict[str, bytes], topic: str = "orders.placed") -> None:
    channel = await stage.connection.channel(confirms=True)
    await channel.basic_publish(
        b'{"order_id": "hostile"}',
        exchange=stage.exchange,
        routing_key=topic,
        properties=Marshalled({"delivery_mode": b"\x02", **fields}),
    )
    await channel.close()


def lost(logs: Sequence[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "broker connection lost"]


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "priorities"])
async def test_it_is_handled_and_so_are_those_beside_it(
    stage: Stage, fields: dict[str, bytes], priorities: int | None
) -> None:
    seen = Seen()
    with capture_logs() as logs:
        async with stage.working(stage.plugin(seen, priorities=priorities)) as worker:
            await stage.publish(OrderPlaced(order_id="before"))
            await send(stage, fields)
            await stage.publish(OrderPlaced(order_id="after"))
            await eventually(lambda: worker.counts.handled == 3)
    assert sorted(event.data["order_id"] for event in seen.events) == ["after", "before", "hostile"]
    assert lost(logs) == []
    assert await stage.waiting_in(stage.queue("charge")) == 0


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
async def test_it_is_retried_and_its_dead_letter_can_be_looked_at(
    stage: Stage, fields: dict[str, bytes]
) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    with capture_logs() as logs:
        async with stage.working(stage.plugin(charge, retry=Retry(SOON))) as worker:
            await send(stage, fields)
            letter = await stage.letter(stage.queue("charge"))
            assert worker.counts.retried == 1
    assert (letter.failure.reason, letter.failure.attempts) == ("failed", 2)
    assert letter.body == b'{"order_id": "hostile"}'
    assert lost(logs) == []


# An event's id may be longer than a message's


@pytest.mark.parametrize("priorities", [None, 5], ids=["quorum", "priorities"])
async def test_an_event_with_a_very_long_id_fails_as_any_other(
    stage: Stage, priorities: int | None
) -> None:
    seen = Seen()
    long_id = "i" * 300

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        raise OutOfLuckError("no money")

    plugin = stage.plugin(charge, retry=Retry(SOON, SOON), priorities=priorities)
    async with stage.working(plugin) as worker:
        await stage.send(
            b'{"specversion":"1.0","id":"%s","type":"orders.placed","source":"s","data":1}'
            % long_id.encode(),
            content_type="application/cloudevents+json",
        )
        letter = await stage.letter(stage.queue("charge"))
        await eventually(lambda: worker.counts.settled == 3)
    assert seen.attempts == [1, 2, 3]
    assert set(seen.ids) == {long_id} == {letter.id}
    assert (letter.failure.reason, letter.failure.attempts) == ("failed", 3)
    assert letter.failure.error_message == "no money"
    assert worker.counts.retried == 2
    assert worker.counts.dead_lettered == {"failed": 1}


# What costs no lane: with a concurrency of one, a lane that died would handle nothing any more


class ForgetfulError(RetryAfter):
    def __init__(self) -> None:  # without RetryAfter's own
        Exception.__init__(self, "come back")


class AbsurdError(RetryAfter):
    delay_s = "soon"  # type: ignore[assignment]  # someone may well write it

    def __init__(self) -> None:
        Exception.__init__(self, "come back")


async def test_a_retry_after_that_forgot_its_delay_is_retried(stage: Stage) -> None:
    seen = Seen()

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt == 1:
            raise ForgetfulError

    async with stage.working(stage.plugin(charge, retry=Retry("1s"))) as worker:
        await stage.publish(OrderPlaced(order_id="1"))
        await eventually(lambda: worker.counts.handled == 1)
    assert seen.attempts == [1, 2]
    assert worker.counts.retried == 1


async def test_errors_of_a_list_are_given_up_on_and_cost_no_lane(stage: Stage) -> None:
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "bad":
            raise OutOfLuckError

    retry = Retry("1s", give_up_on=[KeyError, OutOfLuckError])
    plugin = stage.plugin(charge, OrderPlaced, retry=retry, concurrency=1)
    async with stage.working(plugin) as worker:
        for order_id in ("bad", "bad", "good"):
            await stage.publish(OrderPlaced(order_id=order_id))
        await eventually(lambda: worker.counts.settled == 3)
    assert worker.counts.dead_lettered == {"given-up": 2}
    assert worker.counts.handled == 1


async def test_a_defect_in_the_machinery_costs_no_lane(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "_DEFECT_PAUSE_S", 0.0)
    failed: list[int] = []

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "bad" and len(failed) < 3:
            failed.append(1)
            raise AbsurdError

    with capture_logs() as logs:
        async with stage.working(
            stage.plugin(charge, OrderPlaced, concurrency=1, retry=Retry("1s"))
        ) as worker:
            await stage.publish(OrderPlaced(order_id="bad"))
            await eventually(lambda: len(failed) == 3)
            await stage.publish(OrderPlaced(order_id="good"))
            await eventually(lambda: worker.counts.handled == 2)
    defects = [entry for entry in logs if "please report it" in entry["event"]]
    assert len(defects) == 3
    # In quarantine, too, it is handed back, which counts: it does not go on for ever.
    assert (worker.counts.handed_back, worker.counts.quarantined) == (3, 1)
    assert worker.counts.dead_lettered == {}


class SpitefulError(Exception):
    """An error that nobody can look at."""

    def __str__(self) -> str:
        raise OutOfLuckError

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # that it is none is the spite
        raise OutOfLuckError


class Guarded:
    """Middleware that is an object, and fails in a way of its own."""

    async def __call__(self, event: Any, ctx: Context, call_next: Any) -> None:
        if event.order_id == "bad":
            raise SpitefulError
        await call_next(event, ctx)


class Spiteful(OrderPlaced, topic="orders.placed", version=2):
    def __post_init__(self) -> None:
        if self.order_id == "bad":
            raise SpitefulError


async def test_an_error_that_nobody_can_look_at_is_a_dead_letter(stage: Stage) -> None:
    plugin = Plugin("billing", middleware=[Guarded()])
    plugin.consumer(
        OrderPlaced, name="charge", queue=stage.queue("charge"), retry=Retry(), concurrency=1
    )(seen := Seen())
    async with stage.working(plugin) as worker:
        for order_id in ("bad", "bad", "good"):
            await stage.publish(OrderPlaced(order_id=order_id))
        await eventually(lambda: worker.counts.settled == 3)
    assert worker.counts.dead_lettered == {"failed": 2}
    assert len(seen) == 1


async def test_an_event_type_that_fails_in_its_own_way_is_a_dead_letter(stage: Stage) -> None:
    seen = Seen()
    async with stage.working(stage.plugin(seen, Spiteful, concurrency=1)) as worker:
        for order_id in ("bad", "bad", "good"):
            await stage.publish(OrderPlaced(order_id=order_id))
        await eventually(lambda: worker.counts.settled == 3)
    assert worker.counts.dead_lettered == {"invalid": 2}
    assert len(seen) == 1


async def test_traces_on_dead_letters_begin_in_the_users_code(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        raise OutOfLuckError

    async with stage.working(stage.plugin(charge)):
        await stage.publish(OrderPlaced(order_id="1"))
        letter = await stage.letter(stage.queue("charge"))
    trace = letter.failure.traceback or ""
    assert "in charge" in trace.splitlines()[1]
    assert "evworker/workers" not in trace


async def test_a_time_without_a_zone_that_a_stranger_wrote_is_one_in_utc(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        raise OutOfLuckError

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry(SOON, within="1h"))
    await stage.declare(plugin)
    spoilt = {"evw-first-failed-at": "2026-01-01T00:00:00"}
    await stage.send(b'{"order_id": "1"}', headers=spoilt, message_id="x")
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 1}


class Ending(OrderPlaced, topic="orders.placed", version=2):
    def __post_init__(self) -> None:
        raise {"cancelled": asyncio.CancelledError, "exit": GeneratorExit}[self.order_id]


@pytest.mark.parametrize("how", ["cancelled", "exit"])
async def test_an_event_type_that_ends_its_task_is_a_dead_letter(stage: Stage, how: str) -> None:
    async def handle(event: Ending, ctx: Context) -> None:
        raise AssertionError

    plugin = stage.plugin(handle, Ending)
    await stage.declare(plugin)
    await stage.send(b'{"order_id": "%s"}' % how.encode(), message_id="x")
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"invalid": 1}


async def test_a_wait_whose_queue_is_somebody_elses_is_a_longer_one(stage: Stage) -> None:
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise RetryAfter(1)

    plugin = stage.plugin(handle, OrderPlaced, retry=Retry("1200ms"))
    queue = plugin.consumers[0].queue
    await stage.declare(plugin)
    channel = await stage.connection.channel()
    await channel.queue_declare(stage.queue("charge.retry.1s"), durable=True)
    await stage.publish(OrderPlaced(order_id="1"))
    worker = await stage.work(plugin)
    assert (worker.counts.retried, worker.counts.handled) == (1, 1)
    assert await stage.waiting_in(f"{queue}.retry.1s") == 0
