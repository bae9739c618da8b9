"""`evworker run` as a process: signals, logs, and how it leaves."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from evworker.broker import count_messages
from evworker.cli.event_loop import run_for_long
from tests.cli.command import Command, line_with
from tests.cli.conftest import Exchange
from tests.waiting import eventually


async def test_burst_works_until_all_is_done(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    await evworker("topology", "apply")
    await evworker("publish", "orders.placed", '{"order_id": "a", "total": 1}', "--id", "a")
    worked = await evworker("run", "--queue", f"{shop}.charge", "--burst")
    told = [json.loads(line) for line in worked.err.splitlines()]
    lines = {line["message"]: line for line in told}
    assert (worked.code, worked.out) == (0, "")
    assert set(lines) == {"ready", "charging a", "stopped"}
    assert list(lines["ready"])[:4] == ["timestamp", "level", "logger", "message"]
    # A line of the handler's own `logging` logger names the delivery like any other.
    assert {
        "logger": "shop",
        "event_id": "a",
        "topic": "orders.placed",
        "attempt": 1,
        "consumer": "billing.charge",
        "queue": f"{shop}.charge",
    }.items() <= lines["charging a"].items()
    assert lines["stopped"]["handled"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_peace(
    number: signal.Signals, evworker: Command, exchange: Exchange, shop: str
) -> None:
    async with evworker.started("run", "shop", "-X", f"{shop}.stuck") as process:
        ready = json.loads(await line_with(process.stderr, "ready"))
        assert len(ready["consumers"]) == 1
        process.send_signal(number)
        await line_with(process.stderr, "stopped")
        assert await process.wait() == 0


async def test_a_second_signal_stops_it_at_once_and_loses_nothing(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    await evworker("topology", "apply")
    await evworker("publish", "stuck")
    queue = f"{shop}.stuck"
    async with evworker.started("run", "--shutdown-timeout", "1h") as process:
        await line_with(process.stderr, "ready")

        async def taken() -> bool:
            return await count_messages(exchange.connection, queue) == 0

        await eventually(taken)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        await line_with(process.stderr, "left plain-function handlers running")
        assert await process.wait() == 1

    async def back() -> bool:
        return await count_messages(exchange.connection, queue) == 1

    await eventually(back)


async def test_debug_shows_neither_bodies_nor_passwords(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    await evworker("topology", "apply")
    await evworker("publish", "orders.placed", '{"order_id": "a", "total": 77123}')
    worked = await evworker("run", "-Q", f"{shop}.charge", "--burst", "-l", "debug")
    assert worked.code == 0
    assert "77123" not in worked.err
    assert "PLAIN" not in worked.err
    assert ":guest@" not in worked.err


async def test_console_lines_are_for_people(evworker: Command, shop: str) -> None:
    worked = await evworker("run", "--burst", "--log-format", "console")
    assert "ready" in worked.err
    assert "\x1b" not in worked.err
    with pytest.raises(json.JSONDecodeError):
        json.loads(worked.err.splitlines()[0])


def test_without_uvloop_a_handlers_error_has_no_other_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError) as raised:
        run_for_long(fail())
    assert raised.value.__context__ is None
