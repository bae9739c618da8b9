"""The benchmark: evworker and its peers side by side, in interleaved rounds.

    make bench                                 everything, 20 to 30 minutes
    make bench-quick                           evworker, aio-pika and C, under two minutes
    make bench ARGS="--cases consume --queues quorum --contestants evworker,celery* --rounds 5"
    make bench ARGS="--list"

Round 1 has all contestants, then round 2, and so on; each measurement is a process of its own. The
results go into benchmarks/results, as JSON, as a table and as a chart. docs/benchmarks.md says how
it is measured, and what the numbers mean.

Ratios of one run can be compared, absolute rates of different runs can't.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contestants import CASES, CONTESTANTS, QUEUE_TYPES, QUICK, Contestant
from benchmarks.environments import NotMadeError, program_of
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.measure import MeasurementError, Stage
from benchmarks.peers.measured import RATE
from benchmarks.queues import QueueError
from benchmarks.report import write_report

URL = os.environ.get("EVWORKER_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")
RESULTS = Path(__file__).resolve().parent / "results"

LATENCY_S = 4
"""So many seconds are counted of each latency; one more goes ahead."""

FEWEST, MOST = 2_000, 200_000


class Heat(NamedTuple):
    """One contestant in one case, on one type of queue."""

    case: str
    queue_type: str
    contestant: Contestant


def main() -> None:
    arguments = parsed()
    if arguments.list:
        for contestant in CONTESTANTS:
            print(f"{contestant.name:24} {', '.join(contestant.rates):36} {contestant.note}")
        return
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("this needs Linux: CPU and memory of each contestant are read from /proc")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    run: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "machine": describe_machine(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "measurements": [],
        "left_out": left_out(arguments.contestants),
    }
    heats = [
        heat
        for heat in all_heats(arguments)
        if heat.contestant.name not in {one["contestant"] for one in run["left_out"]}
    ]
    if not heats:
        sys.exit("nothing to measure: no contestant has such a case; --list shows them")
    environments = {heat.contestant.environment for heat in heats}
    run["versions"] = describe_versions(environments)
    try:
        with Stage(arguments.url, limit_s=arguments.limit) as stage:
            run["versions"]["RabbitMQ"] = stage.broker_version
            measure_all(stage, heats, arguments, run["measurements"])
    finally:
        if run["measurements"]:
            write(run, arguments.output)


def end(number: int, _frame: object) -> None:
    """By way of every `finally`, so that processes are ended and queues removed."""
    sys.exit(f"ended by {signal.Signals(number).name}; what was measured until then is kept")


def measure_all(
    stage: Stage, heats: list[Heat], arguments: argparse.Namespace, measured: list[dict[str, Any]]
) -> None:
    """Append what each heat has told, or why it has not, round by round."""
    rates = {heat: heat.contestant.rates[heat.case] for heat in heats}
    for number in range(1, arguments.rounds + 1):
        for heat in heats:
            case, queue_type, contestant = heat
            head = {
                "round": number,
                "case": case,
                "queue_type": queue_type,
                "contestant": contestant.name,
            }
            messages = messages_for(case, rates[heat], arguments.seconds)
            began = time.perf_counter()
            try:
                result = stage.measure(contestant, case, queue_type, messages)
            except (MeasurementError, QueueError, NotMadeError) as error:
                measured.append(head | {"error": str(error)})
                say(f"round {number}: {case}, {queue_type}: {contestant.name}: {error}")
                continue
            result["rate"] = result["messages"] / result["seconds"]
            measured.append(head | result)
            rates[heat] = result["rate"]
            took_s = time.perf_counter() - began
            what = f"round {number}: {case:8}{queue_type:8}{contestant.name:24}"
            say(f"{what}{told(result)} ({took_s:.0f} s)")


def messages_for(case: str, rate: float, seconds: float) -> int:
    """As many as take about so long; what a round has measured decides for the next."""
    if case == "latency":
        return RATE * (1 + LATENCY_S)
    return int(min(max(rate * seconds, FEWEST), MOST))


def told(result: dict[str, Any]) -> str:
    if "p50_ms" in result:
        return f"p50 {result['p50_ms']:.2f} ms, p99 {result['p99_ms']:.2f} ms"
    cpu_us = result["cpu_s"] / result["messages"] * 1e6
    return f"{result['rate']:10,.0f} messages/s, {cpu_us:.0f} us of CPU each"


def all_heats(arguments: argparse.Namespace) -> Iterator[Heat]:
    for case in arguments.cases:
        for queue_type in arguments.queues:
            for contestant in CONTESTANTS:
                if (
                    contestant.name in arguments.contestants
                    and case in contestant.rates
                    and queue_type in contestant.queue_types
                ):
                    yield Heat(case, queue_type, contestant)


def left_out(names: list[str]) -> list[dict[str, str]]:
    """Who can't be measured here and why, after its environment was made if it could be."""
    missing = []
    for contestant in CONTESTANTS:
        if contestant.name in names:
            try:
                program_of(contestant.environment)
            except NotMadeError as error:
                say(f"{contestant.name} is left out: {error}")
                missing.append({"contestant": contestant.name, "reason": str(error)})
    return missing


def write(run: dict[str, Any], output: Path | None) -> None:
    name = run["started"].partition("+")[0].replace(":", "")
    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1), encoding="utf-8")
    for written in (path, *write_report(path)):
        say(f"written: {written}")


def say(text: str) -> None:
    print(text, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="evworker and its peers, side by side")
    parser.add_argument("--quick", action="store_true", help="one short round of a few")
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}; all unless given")
    parser.add_argument("--queues", help=f"of {', '.join(QUEUE_TYPES)}; both unless given")
    parser.add_argument("--contestants", help="names, as 'evworker*,celery'; --list shows them")
    parser.add_argument("--rounds", type=int, help="3 unless given")
    parser.add_argument("--seconds", type=float, help="that a measurement is to take; 2")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds until one is ended")
    parser.add_argument("--output", type=Path, help="the JSON; table and chart go beside it")
    parser.add_argument("--url", default=URL.replace(",", " ").split()[0])
    parser.add_argument("--list", action="store_true", help="the contestants, and their cases")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.cases = chosen(parser, arguments.cases, CASES, CASES[:2] if quick else CASES)
    arguments.queues = chosen(parser, arguments.queues, QUEUE_TYPES, QUEUE_TYPES)
    arguments.contestants = chosen_contestants(parser, arguments.contestants, quick=quick)
    arguments.rounds = arguments.rounds or (1 if quick else 3)
    arguments.seconds = arguments.seconds or (1.0 if quick else 2.0)
    return arguments


def chosen(
    parser: argparse.ArgumentParser,
    given: str | None,
    known: tuple[str, ...],
    otherwise: tuple[str, ...],
) -> list[str]:
    names = given.split(",") if given else list(otherwise)
    if unknown := set(names) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return names


def chosen_contestants(
    parser: argparse.ArgumentParser, given: str | None, *, quick: bool
) -> list[str]:
    known = [contestant.name for contestant in CONTESTANTS]
    if given is None:
        return [name for name in known if name in QUICK] if quick else known
    names: set[str] = set()
    for pattern in given.split(","):
        found = fnmatch.filter(known, pattern.strip())
        if not found:
            parser.error(f"no contestant is named {pattern!r}: there are {', '.join(known)}")
        names.update(found)
    return [name for name in known if name in names]


if __name__ == "__main__":
    main()
