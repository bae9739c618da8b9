"""The benchmark's runner: who fails is named, the others are measured, and nothing stays behind."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.measure import MeasurementError, Stage, plain_message
from benchmarks.queues import QueueError, Queues
from benchmarks.run import Heat, measure_all
from tests.conftest import Cleanup

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason="contestants are measured by Linux's /proc; the benchmark says so too",
)

EVWORKER = next(one for one in CONTESTANTS if one.name == "evworker")
PLAIN = next(one for one in CONTESTANTS if one.name == "evworker plain queue")


@pytest.fixture
def stage(broker_url: str) -> Iterator[Stage]:
    with Stage(broker_url, limit_s=60) as opened:
        yield opened


def contestant(name: str, code: str) -> Contestant:
    return Contestant(name, "plain", None, {"consume": 1000}, worker=("{python}", "-c", code))


def test_a_captured_message_is_sent_again_as_it_was(
    broker_url: str, unique: str, cleanup: Cleanup
) -> None:
    queue = cleanup.queue(unique)
    with Queues(broker_url) as queues:
        queues.declare(queue, "classic")
        queues.fill(queue, [plain_message()], 3)
        captured = queues.capture(queue)
        queues.fill(queue, captured, 5)
        again = queues.capture(queue)
    assert captured == [plain_message()] * 3
    assert again == [plain_message()] * 5


def test_a_queue_that_is_asked_for_in_vain_is_no_harm(broker_url: str, unique: str) -> None:
    with Queues(broker_url) as queues:
        assert not queues.has_queue(unique)
        with pytest.raises(QueueError):
            queues.depth(unique)
        assert not queues.has_exchange(unique)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_consuming_and_publishing_are_measured(stage: Stage, queue_type: str) -> None:
    for case in ("consume", "publish"):
        result = stage.measure(EVWORKER, case, queue_type, 600)
        assert result["messages"] == 600
        assert result["seconds"] > 0
        assert result["pss_mib"] > 1
        assert result["processes"] == 1


def test_what_has_no_option_is_measured(stage: Stage) -> None:
    result = stage.measure(PLAIN, "consume", "classic", 100)
    assert (result["messages"], result["left"]) == (100, 0)


def test_who_says_nothing_is_ended(broker_url: str) -> None:
    silent = contestant("silent", "import time; time.sleep(600)")
    with Stage(broker_url, limit_s=1) as stage, pytest.raises(MeasurementError, match="after 1 s"):
        stage.measure(silent, "consume", "quorum", 10)


def test_who_fails_says_why_and_the_run_goes_on(stage: Stage) -> None:
    failing = contestant("failing", "raise SystemExit('no such thing')")
    heats = [Heat("consume", "quorum", one) for one in (failing, EVWORKER)]
    measured: list[dict[str, Any]] = []
    measure_all(stage, heats, argparse.Namespace(rounds=1, seconds=0.1), measured)
    failed, succeeded = measured
    assert failed["contestant"] == "failing"
    assert "no such thing" in failed["error"]
    assert succeeded["rate"] > 0
    assert succeeded["left"] == 0


def test_nothing_stays_behind(broker_url: str) -> None:
    with Stage(broker_url, limit_s=60) as stage:
        stage.measure(EVWORKER, "consume", "quorum", 100)
        queue = f"{stage.name}-evworker-quorum"
        with Queues(broker_url) as queues:
            assert queues.has_queue(queue)
    with Queues(broker_url) as queues:
        assert not queues.has_queue(queue)
        assert not queues.has_queue(f"{queue}.dlq")
        assert not queues.has_exchange(f"{queue}.events")
