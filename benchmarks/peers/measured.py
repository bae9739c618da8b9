"""What a measured process is told to do, and how it says what that took.

Runs in each peer's own environment, so it needs nothing but the standard library.

A measured process and its children are a session of their own. What the session has cost, in CPU
and in memory, is read from /proc at the first and at the last message, outside of the time that is
measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple

PREFETCH = 200
AT_ONCE = 200
"""How many tasks publish side by side, each awaiting its confirm."""

THREADS = 8
"""How many threads handle or publish, where a peer has threads and no tasks."""

RATE = 200
"""Messages a second where latency is measured; the first second of them is not counted."""

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def order(order_id: str) -> dict[str, Any]:
    """An order of about 300 bytes of JSON."""
    return {
        "order_id": order_id,
        "customer_id": "17850",
        "currency": "GBP",
        "total": "139.12",
        "placed_at": "2026-11-23T12:00:00Z",
        "lines": [
            {"sku": "85123A", "quantity": 6, "price": "2.55"},
            {"sku": "71053", "quantity": 6, "price": "3.39"},
            {"sku": "84406B", "quantity": 8, "price": "2.75"},
            {"sku": "84029G", "quantity": 6, "price": "3.39"},
        ],
    }


ORDER = order("536365")


Send = Callable[[dict[str, Any]], Awaitable[object]]


class Assignment(NamedTuple):
    """What the runner wants of this process, out of the environment."""

    case: str
    broker_url: str
    queue: str
    queue_type: str
    messages: int
    result: Path
    is_tuned: bool

    @classmethod
    def given(cls) -> Assignment:
        given = os.environ
        return cls(
            case=given["BENCH_CASE"],
            broker_url=given["BENCH_BROKER_URL"],
            queue=given["BENCH_QUEUE"],
            queue_type=given["BENCH_QUEUE_TYPE"],
            messages=int(given["BENCH_MESSAGES"]),
            result=Path(given["BENCH_RESULT"]),
            is_tuned=given.get("BENCH_DEFAULTS") != "1",
        )


class Usage(NamedTuple):
    """What a session has used so far."""

    cpu_s: float
    pss_mib: float
    processes: int


def session_usage() -> Usage:
    session = os.getsid(0)
    ticks = processes = pss_kib = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            # The second field is the command in brackets, which may hold spaces.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            rollup = (process / "smaps_rollup").read_text()
        except OSError:  # it has just ended
            continue
        processes += 1
        ticks += sum(map(int, fields[11:15]))  # user and system, its own and of waited children
        pss_kib += next(
            int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
        )
    return Usage(ticks / _TICKS_A_SECOND, pss_kib / 1024, processes)


def tell(result: Path, measured: dict[str, float]) -> None:
    """Write the result; the runner waits for the file, so it appears whole or not at all."""
    unfinished = result.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(measured))
    unfinished.rename(result)


class Stopwatch:
    """Counts handled messages, and tells what they took from the first to the last."""

    def __init__(self, assignment: Assignment) -> None:
        self._messages = assignment.messages
        self._result = assignment.result
        self._numbers = itertools.count(1)  # atomic, which `+= 1` is not: handlers run in threads

    def handled(self, _order_id: str) -> None:
        number = next(self._numbers)
        if number == 1:
            self.begin()
        if number == self._messages:
            self.end()

    def begin(self) -> None:
        self._before = session_usage()
        self._began = time.perf_counter()

    def end(self) -> None:
        seconds = time.perf_counter() - self._began
        after = session_usage()
        tell(
            self._result,
            {
                "messages": self._messages,
                "seconds": seconds,
                "cpu_s": after.cpu_s - self._before.cpu_s,
                "pss_mib": after.pss_mib,
                "processes": after.processes,
            },
        )


class LatencyWatch(Stopwatch):
    """Collects how long each message took from its publish to its handler."""

    def __init__(self, assignment: Assignment) -> None:
        super().__init__(assignment)
        self._milliseconds: list[float] = []

    def handled(self, order_id: str) -> None:
        arrived = time.time_ns()
        if not order_id.startswith("sent "):
            return  # what was sent ahead, to see that the worker is there
        number = next(self._numbers)
        if number == 1:
            self.begin()
        if number > RATE:
            self._milliseconds.append((arrived - int(order_id[5:])) / 1e6)
        if number == self._messages:
            self.end()

    def end(self) -> None:
        seconds = time.perf_counter() - self._began
        after = session_usage()
        slowest_last = sorted(self._milliseconds)

        def percentile(part: float) -> float:
            return slowest_last[min(int(part * len(slowest_last)), len(slowest_last) - 1)]

        tell(
            self._result,
            {
                "messages": self._messages,
                "seconds": seconds,
                "cpu_s": after.cpu_s - self._before.cpu_s,
                "pss_mib": after.pss_mib,
                "processes": after.processes,
                "p50_ms": percentile(0.50),
                "p95_ms": percentile(0.95),
                "p99_ms": percentile(0.99),
                "max_ms": slowest_last[-1],
            },
        )


def watch_for(assignment: Assignment) -> Stopwatch:
    """What the handler tells of each message."""
    return (LatencyWatch if assignment.case == "latency" else Stopwatch)(assignment)


def run(main: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run; with BENCH_UVLOOP=1 on uvloop, which has to be in the environment then."""
    if os.environ.get("BENCH_UVLOOP") == "1":
        import uvloop  # noqa: PLC0415 - where it is asked for, it is installed

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main)


# Publishing: `sample` makes the messages that are replayed, `publish` is measured, `pace` feeds the
# latency's worker.


async def publish(
    assignment: Assignment, send: Callable[[dict[str, Any]], Awaitable[object]]
) -> None:
    """By AT_ONCE tasks; `send` returns once its message is confirmed, where the peer has that."""
    if assignment.case == "pace":
        await _pace(assignment, send)
        return
    numbers = iter(range(assignment.messages))

    async def lane() -> None:
        for _ in numbers:
            await send(ORDER)

    watch = Stopwatch(assignment)
    watch.begin()
    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
    watch.end()


async def _pace(
    assignment: Assignment, send: Callable[[dict[str, Any]], Awaitable[object]]
) -> None:
    for wait_s in _due(assignment.messages):
        await asyncio.sleep(wait_s)
        await send(order(f"sent {time.time_ns()}"))


def publish_in_threads(
    assignment: Assignment, send: Callable[[dict[str, Any]], object], threads: int
) -> None:
    """As `publish`, for a peer whose publishing blocks."""
    if assignment.case == "pace":
        for wait_s in _due(assignment.messages):
            time.sleep(wait_s)
            send(order(f"sent {time.time_ns()}"))
        return
    numbers = itertools.count(1)

    def lane() -> None:
        while next(numbers) <= assignment.messages:
            send(ORDER)

    watch = Stopwatch(assignment)
    lanes = [threading.Thread(target=lane) for _ in range(threads)]
    watch.begin()
    for one in lanes:
        one.start()
    for one in lanes:
        one.join()
    watch.end()


def _due(messages: int) -> Iterable[float]:
    """How long to wait before each message, so that RATE of them go out each second."""
    began = time.perf_counter()
    for number in range(messages):
        yield max(began + number / RATE - time.perf_counter(), 0.0)
