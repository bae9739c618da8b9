"""The benchmark's table: medians, and ratios round by round."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Heats, markdown, panels


def one(contestant: str, number: int, rate: float, **more: Any) -> dict[str, Any]:
    head = {"case": "consume", "queue_type": "quorum", "contestant": contestant, "round": number}
    told = {"messages": 1000, "seconds": 1000 / rate, "cpu_s": 0.01, "pss_mib": 30.0, "rate": rate}
    return head | told | more


RUN: dict[str, Any] = {
    "started": "2026-11-23T12:00:00+00:00",
    "machine": {"cores": 2, "cpu": "a CPU", "memory": "1 kB", "system": "Linux", "python": "3.11"},
    "load_at_start": [0.1, 0.1, 0.1],
    "rounds": 3,
    "seconds": 2.0,
    "versions": {"evworker": "1"},
    "left_out": [{"contestant": "taskiq", "reason": "its packages can't be installed: why"}],
    "measurements": [
        one("evworker", 1, 300),
        one("aio-pika", 1, 100),
        one("evworker", 2, 400),
        one("aio-pika", 2, 200, left=7),
        one("evworker", 3, 900),
        one("aio-pika", 3, 1) | {"error": "ended with code 1\n    no such thing"},
    ],
}


def test_a_ratio_is_of_the_rounds_that_both_have() -> None:
    heats = Heats(RUN, "consume", "quorum")
    assert heats.ratio("evworker", "aio-pika") == [3.0, 2.0]
    assert heats.ratio("evworker", "nobody") == []


def test_the_table_has_medians_and_what_went_wrong() -> None:
    text = markdown(RUN)
    assert "| evworker | 400 | 300-900 | 2.50 | 10 | 30 |" in text
    assert "| Consume, quorum queue: evworker | 2.50 (2.00-3.00) |" in text
    assert "taskiq is left out: its packages can't be installed: why" in text
    assert "round 3, consume, quorum: aio-pika: ended with code 1; no such thing" in text
    assert "aio-pika: 7 acks did not arrive" in text


def test_the_chart_shows_the_same() -> None:
    rates, cpu = panels(RUN)
    assert [(bar["name"], bar["median"]) for bar in rates["bars"]] == [
        ("evworker", 400.0),
        ("aio-pika", 150.0),
    ]
    assert cpu["bars"][0]["median"] == 10.0
