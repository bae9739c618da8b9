"""What a run has measured, as a table and a chart.

    python -m benchmarks.report benchmarks/results/NAME.json

Medians of the rounds, with the least and the most. A ratio is taken round by round, of two that
were measured within the same minutes, and then its median.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contestants import (
    AIO_PIKA,
    C_CONSUMER,
    C_LIKE_EVWORKER,
    C_PUBLISHER,
    CASES,
    CONTESTANTS,
    EVWORKER,
    PUBLISH_MANY,
    QUEUE_TYPES,
    TUNED,
)
from benchmarks.environments import NotMadeError, python_of
from benchmarks.peers.measured import RATE

Rounds = dict[int, float]
"""A number for each round that told one."""

LIMITS = {"consume": C_CONSUMER, "publish": C_PUBLISHER}
BY_HAND = "relay by hand"
IN_PACE = 0.95
"""Of the rate that is asked for; below it a latency is not that of RATE messages a second."""
TITLES = {
    "consume": "Consume",
    "publish": "Publish, each confirm awaited",
    "latency": "Latency at 200/s, publish to handler",
    "relay": "Outbox relay on PostgreSQL",
}


class Heats:
    """The measurements of one case on one type of queue."""

    def __init__(self, run: dict[str, Any], case: str, queue_type: str) -> None:
        self.case = case
        self.title = f"{TITLES[case]}, {queue_type} queue"
        self._measured: dict[str, list[dict[str, Any]]] = {}
        for one in run["measurements"]:
            if (one["case"], one["queue_type"]) == (case, queue_type) and "error" not in one:
                self._measured.setdefault(one["contestant"], []).append(one)

    @property
    def names(self) -> list[str]:
        return [one.name for one in CONTESTANTS if one.name in self._measured]

    def rounds(self, name: str, what: Callable[[dict[str, Any]], float]) -> Rounds:
        return {one["round"]: what(one) for one in self._measured.get(name, [])}

    def figures(self, name: str) -> Rounds:
        """What the case is about: messages a second, or the median latency."""
        return self.rounds(name, p50_ms if self.case == "latency" else rate)

    def ratio(self, name: str, beside: str) -> list[float]:
        ours, theirs = self.figures(name), self.figures(beside)
        return [ours[number] / theirs[number] for number in ours if theirs.get(number)]

    def left(self, name: str) -> int:
        return sum(int(one.get("left", 0)) for one in self._measured[name])


def rate(measured: dict[str, Any]) -> float:
    return float(measured["rate"])


def p50_ms(measured: dict[str, Any]) -> float:
    return float(measured["p50_ms"])


def cpu_us(measured: dict[str, Any]) -> float:
    return float(measured["cpu_s"]) / float(measured["messages"]) * 1e6


def pss_mib(measured: dict[str, Any]) -> float:
    return float(measured["pss_mib"])


def heats_of(run: dict[str, Any]) -> Iterator[Heats]:
    for case in CASES:
        for queue_type in QUEUE_TYPES:
            heats = Heats(run, case, queue_type)
            if heats.names:
                yield heats


# The table


def markdown(run: dict[str, Any]) -> str:
    machine = run["machine"]
    where = f"{machine['cores']} cores, {machine['cpu']}, {machine['memory']}, {machine['system']}"
    load = ", ".join(map(str, run["load_at_start"]))
    rounds = f"{run['rounds']} interleaved rounds, about {run['seconds']:g} s each"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"# Benchmark of {run['started']}",
        "",
        f"{where}; Python {machine['python']}. Load at the start: {load}. {rounds}.",
        "",
        f"{versions}.",
        "",
        "Ratios of this run can be compared, absolute rates of different runs can't.",
        "",
    ]
    everything = list(heats_of(run))
    for heats in everything:
        if heats.case == "latency":
            lines += latency_table(heats)
        else:
            lines += rate_table(heats)
    lines += ratio_table(everything)
    lines += remarks(run, everything)
    return "\n".join(lines)


def rate_table(heats: Heats) -> list[str]:
    unit = "events/s" if heats.case == "relay" else "messages/s"
    of_relay = [BY_HAND, PUBLISH_MANY]
    beside = of_relay if heats.case == "relay" else [LIMITS[heats.case], AIO_PIKA]
    beside = [name for name in beside if name in heats.names]
    head = ["", unit, "min-max", *(f"x {name}" for name in beside), "CPU µs each", "PSS MiB"]
    return table(
        heats.title,
        head,
        [
            [
                name,
                *spread(heats.figures(name), "{:,.0f}"),
                *(ratio(heats.ratio(name, other)) for other in beside),
                median(heats.rounds(name, cpu_us), "{:.0f}"),
                median(heats.rounds(name, pss_mib), "{:.0f}"),
            ]
            for name in heats.names
        ],
    )


def latency_table(heats: Heats) -> list[str]:
    def of(field: str) -> Callable[[dict[str, Any]], float]:
        return lambda measured: float(measured[field])

    head = ["", "p50 ms", "min-max", "p95 ms", "p99 ms", f"p50 x {AIO_PIKA}", "CPU µs each"]
    return table(
        heats.title,
        head,
        [
            [
                name,
                *spread(heats.figures(name), "{:.2f}"),
                median(heats.rounds(name, of("p95_ms")), "{:.2f}"),
                median(heats.rounds(name, of("p99_ms")), "{:.2f}"),
                ratio(heats.ratio(name, AIO_PIKA)),
                median(heats.rounds(name, cpu_us), "{:.0f}"),
            ]
            for name in heats.names
        ],
    )


def ratio_table(everything: list[Heats]) -> list[str]:
    """evworker beside each: how many times as fast, or of latency how long."""
    names = [*LIMITS.values(), *C_LIKE_EVWORKER, AIO_PIKA, *TUNED, BY_HAND, PUBLISH_MANY]
    present = [name for name in names if any(name in heats.names for heats in everything)]
    rows = []
    for heats in everything:
        for ours in (name for name in heats.names if name.startswith(EVWORKER)):
            ratios = [heats.ratio(ours, other) for other in present]
            if any(ratios):
                rows.append([f"{heats.title}: {ours}", *map(ratio_spread, ratios)])
    if not rows:
        return []
    return table("evworker beside each", ["", *(f"x {name}" for name in present)], rows)


def remarks(run: dict[str, Any], everything: list[Heats]) -> list[str]:
    present = {name for heats in everything for name in heats.names}
    lines = ["## Who is who", ""]
    lines += [
        f"- {one.name}: {one.note}" for one in CONTESTANTS if one.name in present and one.note
    ]
    troubles = [f"- {one['contestant']} is left out: {one['reason']}" for one in run["left_out"]]
    troubles += [
        f"- round {one['round']}, {one['case']}, {one['queue_type']}: {one['contestant']}: "
        + "; ".join(map(str.strip, one["error"].splitlines()))
        for one in run["measurements"]
        if "error" in one
    ]
    troubles += [
        f"- {heats.title}: {name}: {heats.left(name):,} acks did not arrive before it was ended"
        for heats in everything
        for name in heats.names
        if heats.left(name)
    ]
    for heats in everything:
        if heats.case == "latency":
            slowest = {name: min(heats.rounds(name, rate).values()) for name in heats.names}
            troubles += [
                f"- {heats.title}: {name}: its publisher did not keep pace, {least:.0f} messages/s"
                for name, least in slowest.items()
                if least < IN_PACE * RATE
            ]
    return [*lines, "", *(["## What went wrong", "", *troubles, ""] if troubles else [])]


def table(title: str, head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""]


def spread(rounds: Rounds, form: str) -> list[str]:
    numbers = list(rounds.values())
    low, high = form.format(min(numbers)), form.format(max(numbers))
    return [median(rounds, form), f"{low}-{high}"]


def median(rounds: Rounds, form: str) -> str:
    return form.format(statistics.median(rounds.values()))


def ratio(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def ratio_spread(ratios: list[float]) -> str:
    return f"{ratio(ratios)} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else ""


# The chart


def panels(run: dict[str, Any]) -> list[dict[str, Any]]:
    """What chart.py draws: a panel for each case and type of queue, and one of CPU."""
    drawn = []
    for heats in heats_of(run):
        unit = {"latency": "ms, median", "relay": "events/s"}.get(heats.case, "messages/s")
        drawn.append({"title": heats.title, "unit": unit, "bars": bars(heats, heats.figures)})
        if heats.case == "consume":
            title = f"CPU of a message: {heats.title.lower()}"
            each = bars(heats, partial(heats.rounds, what=cpu_us))
            drawn.append({"title": title, "unit": "µs, all processes of the worker", "bars": each})
    return drawn


def bars(heats: Heats, figures: Callable[[str], Rounds]) -> list[dict[str, Any]]:
    drawn = []
    for name in heats.names:
        numbers = list(figures(name).values())
        drawn.append(
            {
                "name": name,
                "median": statistics.median(numbers),
                "low": min(numbers),
                "high": max(numbers),
                "is_ours": name.startswith(EVWORKER),
            }
        )
    return drawn


def write_report(path: Path) -> list[Path]:
    """Table and chart beside the JSON; without matplotlib's environment the table alone."""
    run = json.loads(path.read_text(encoding="utf-8"))
    written = [path.with_suffix(".md")]
    written[0].write_text(markdown(run), encoding="utf-8")
    pictures = [path.with_suffix(".png"), path.with_suffix(".svg")]
    chart = [str(Path(__file__).with_name("chart.py")), *map(str, pictures)]
    try:
        command = [str(python_of("chart")), *chart]
        subprocess.run(command, input=json.dumps(panels(run)), text=True, check=True)
    except (NotMadeError, subprocess.CalledProcessError) as error:
        print(f"no chart: {error}", file=sys.stderr)
    else:
        written += pictures
    return written


if __name__ == "__main__":
    for file in write_report(Path(sys.argv[1])):
        print(file)
