"""What a worker logs: little, and always of which delivery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from evworker.workers import Context, Retry, delivery_log_fields
from tests.waiting import eventually
from tests.workers.stage import SOON, OrderPlaced, OutOfLuckError, Stage


class Lines:
    """The log lines of one test."""

    def __init__(self) -> None:
        self._capture = LogCapture()
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                delivery_log_fields,
                self._capture,
            ]
        )

    def told(self, event: str) -> list[dict[str, Any]]:
        return [dict(line) for line in self._capture.entries if line["event"] == event]

    def at(self, *levels: str) -> list[str]:
        return [line["event"] for line in self._capture.entries if line["log_level"] in levels]


@pytest.fixture
def lines() -> Iterator[Lines]:
    yield Lines()
    structlog.reset_defaults()


def delivery(stage: Stage, attempt: int = 1) -> dict[str, Any]:
    return {
        "event_id": "e-1",
        "topic": "orders.placed",
        "consumer": "charge",
        "queue": stage.queue("charge"),
        "attempt": attempt,
    }


async def fail(event: Any, ctx: Context) -> None:
    raise OutOfLuckError("no luck")


async def test_a_worker_says_once_what_it_consumes(stage: Stage, lines: Lines) -> None:
    async def on_order(event: OrderPlaced, ctx: Context) -> None: ...

    plugin = stage.plugin(on_order, OrderPlaced)
    plugin.consumer("a.*", "b.#", name="other", queue=stage.queue("other"))(on_any)
    async with stage.working(plugin):
        await eventually(lambda: lines.told("ready"))
    (ready,) = lines.told("ready")
    assert ready["log_level"] == "info"
    assert ready["exchange"] == stage.exchange
    assert ready["consumers"] == [
        f"charge (orders.placed from {stage.queue('charge')})",
        f"other (a.*, b.# from {stage.queue('other')})",
    ]
    assert "guest:guest" not in str(ready)
    assert lines.at("warning", "error", "critical") == []


async def on_any(event: Any, ctx: Context) -> None: ...


async def test_success_is_told_at_debug_only(stage: Stage, lines: Lines) -> None:
    async with stage.working(stage.plugin(on_any, OrderPlaced)) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.handled == 1)
    (handled,) = lines.told("handled")
    assert handled == {"event": "handled", "log_level": "debug", **delivery(stage)}
    assert set(lines.at("info", "warning", "error", "critical")) == {"ready", "stopped"}
    (stopped,) = lines.told("stopped")
    assert stopped["handled"] == 1


async def test_a_retry_is_a_warning_and_a_dead_letter_an_error(stage: Stage, lines: Lines) -> None:
    plugin = stage.plugin(fail, OrderPlaced, retry=Retry(SOON))
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 1})
    assert lines.at("warning", "error", "critical") == ["failed, trying again", "dead-lettered"]
    (retried,) = lines.told("failed, trying again")
    assert retried == {
        "event": "failed, trying again",
        "log_level": "warning",
        "delay": SOON,
        "error_type": "tests.workers.stage.OutOfLuckError",
        "error": "no luck",
        **delivery(stage),
    }
    (dead,) = lines.told("dead-lettered")
    assert dead["log_level"] == "error"
    assert dead["reason"] == "failed"
    assert dead["dead_letter_queue"] == f"{stage.queue('charge')}.dlq"
    assert "in fail" in dead["exception"]
    assert dead.items() >= delivery(stage, attempt=2).items()


@pytest.mark.parametrize(
    ("body", "reason", "known"),
    [
        (b"not json", "undecodable", {"queue"}),
        (b'{"order_id": 1}', "invalid", {"queue", "event_id", "topic", "consumer"}),
    ],
)
async def test_what_never_reached_a_handler_is_an_error_that_names_it(
    stage: Stage, lines: Lines, body: bytes, reason: str, known: set[str]
) -> None:
    async with stage.working(stage.plugin(on_any, OrderPlaced)) as worker:
        await stage.send(body, topic="orders.placed", message_id="e-1")
        await eventually(lambda: worker.counts.dead_lettered == {reason: 1})
    (dead,) = lines.told("dead-lettered")
    fields = delivery(stage)
    assert dead.items() >= {name: fields[name] for name in known}.items()
    assert dead["reason"] == reason
    assert lines.at("warning", "error", "critical") == ["dead-lettered"]


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_every_line_of_a_handler_names_its_delivery(
    stage: Stage, lines: Lines, kind: str
) -> None:
    def charge(event: OrderPlaced, ctx: Context) -> None:
        structlog.get_logger("some.library").info("from anywhere", mine=1)
        ctx.log.info("from the context", attempt="mine")

    async def charge_async(event: OrderPlaced, ctx: Context) -> None:
        charge(event, ctx)

    plugin = stage.plugin(charge if kind == "thread" else charge_async, OrderPlaced)
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.handled == 1)
    (anywhere,) = lines.told("from anywhere")
    assert anywhere == {
        "event": "from anywhere",
        "log_level": "info",
        "mine": 1,
        **delivery(stage),
    }
    (own,) = lines.told("from the context")
    assert own["attempt"] == "mine"
    assert own["event_id"] == "e-1"


async def test_lines_outside_of_a_delivery_name_none(stage: Stage, lines: Lines) -> None:
    async with stage.working(stage.plugin(on_any, OrderPlaced)) as worker:
        await stage.publish(OrderPlaced(order_id="42"), id="e-1")
        await eventually(lambda: worker.counts.handled == 1)
        structlog.get_logger().info("elsewhere")
    assert lines.told("elsewhere") == [{"event": "elsewhere", "log_level": "info"}]
    assert "event_id" not in lines.told("stopped")[0]


async def test_deliveries_that_run_together_do_not_lend_each_other_their_names(
    stage: Stage, lines: Lines
) -> None:
    inside: set[str] = set()

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        inside.add(event.order_id)
        await eventually(lambda: len(inside) == 5)
        structlog.get_logger().info("together", order_id=event.order_id)

    async with stage.working(stage.plugin(charge, OrderPlaced, concurrency=5)) as worker:
        for number in range(5):
            await stage.publish(OrderPlaced(order_id=str(number)), id=f"e-{number}")
        await eventually(lambda: worker.counts.handled == 5)
    together = lines.told("together")
    assert len(together) == 5
    assert all(line["event_id"] == f"e-{line['order_id']}" for line in together)
