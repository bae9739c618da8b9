"""One measurement: a queue is filled, processes are started, and told to end.

Everything that is made on the broker has the run's own name, and is removed at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pamqp import header
from pamqp.commands import Basic

from benchmarks.contestants import CONTESTANTS, PEERS, Contestant
from benchmarks.environments import program_of
from benchmarks.peers.measured import ORDER, RATE
from benchmarks.queues import Captured, Queues

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = 500
"""So many different messages of a peer are captured, and published over and over."""

_REST_S = 0.5  # the broker may still be writing what it has counted already
_LAST_ACKS_S = 0.3  # the result is told before the last ack has left
_SETTLED_S = 30.0
_ENDING_S, _CLEARING_UP_S = 3.0, 15.0
"""How long a process may take to end: one that has told its result (Celery's would take ten
seconds for nothing), and one that has not and may have something to remove."""
_LOG_LINES = 5

Result = dict[str, Any]


class Trial(NamedTuple):
    """What is asked of a process."""

    case: str
    queue: str
    queue_type: str
    messages: int


class MeasurementError(Exception):
    """A contestant did not do what it was started for."""


class Stage:
    """Where contestants are measured, one after the other. `limit_s` is what each of them has."""

    def __init__(self, url: str, *, limit_s: float) -> None:
        self._url = url
        self._limit_s = limit_s
        self.name = f"bench-{uuid.uuid4().hex[:8]}"
        self._samples: dict[tuple[str, str], list[Captured]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._queues = Queues(url)
        self._used: set[tuple[str, str]] = set()
        self._queues_before = {
            name
            for peer in PEERS.values()
            for name in peer.queue_traces
            if self._queues.has_queue(name)
        }
        self._exchanges_before = {
            name
            for peer in PEERS.values()
            for name in peer.exchange_traces
            if self._queues.has_exchange(name)
        }
        self.broker_version = self._queues.version

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()
        self._queues.__exit__(kind, error, trace)
        with Queues(self._url) as self._queues:  # the other may be in the midst of something
            self._remove()

    def measure(self, contestant: Contestant, case: str, queue_type: str, messages: int) -> Result:
        """What it told: messages, seconds, cpu_s, pss_mib, and of latency p50_ms and its like.

        Raises MeasurementError, or QueueError if the broker has not what it ought to have.
        """
        queue = f"{self.name}-{contestant.peer}-{queue_type}"
        trial = Trial(case, queue, queue_type, messages)
        match case:
            case "consume":
                return self._consume(contestant, trial, self._sample(contestant.peer, trial))
            case "publish":
                self._sample(contestant.peer, trial)  # it declares the queue
                return self._publish(contestant, trial)
            case "latency":
                return self._latency(contestant, trial, self._sample(contestant.peer, trial))
            case _:
                return self._run(contestant, contestant.relay, trial)

    def _sample(self, peer: str, trial: Trial) -> list[Captured]:
        """Messages as the peer publishes them; its queue is there and empty after that."""
        if (peer, trial.queue) in self._samples:
            return self._samples[peer, trial.queue]
        self._used.add((peer, trial.queue))
        if peer == "plain":
            self._queues.declare(trial.queue, trial.queue_type)
            sample = [plain_message()] * SAMPLE
        else:
            by = next(one for one in CONTESTANTS if one.peer == peer and one.publisher)
            sample = []
            self._publish(by, trial._replace(case="publish", messages=SAMPLE), sample)
        self._samples[peer, trial.queue] = sample
        return sample

    def _consume(self, contestant: Contestant, trial: Trial, sample: list[Captured]) -> Result:
        try:
            self._queues.fill(trial.queue, sample, trial.messages)
            time.sleep(_REST_S)
            result = self._run(contestant, contestant.worker, trial)
            return result | {"left": self._left(trial.queue)}
        finally:
            self._queues.purge(trial.queue)

    def _publish(
        self, contestant: Contestant, trial: Trial, sample: list[Captured] | None = None
    ) -> Result:
        """Publish, and leave the queue empty; what was there is added to the sample."""
        try:
            with self._started(contestant, contestant.publisher, trial) as process:
                result = process.result(self._limit_s)
                # Who has no confirms is not ended before the broker has read everything.
                self._queues.await_depth(trial.queue, trial.messages, limit_s=_SETTLED_S)
            if sample is not None:
                sample += self._queues.capture(trial.queue)
            return result
        finally:
            if self._queues.has_queue(trial.queue):
                self._queues.purge(trial.queue)

    def _latency(self, contestant: Contestant, trial: Trial, sample: list[Captured]) -> Result:
        """Worker and publisher are processes of their own; the worker is there first."""
        pace = trial._replace(case="pace")
        try:
            self._queues.fill(trial.queue, sample, 1)
            with self._started(contestant, contestant.worker, trial) as worker:
                self._queues.await_depth(trial.queue, 0, limit_s=self._limit_s)
                time.sleep(_REST_S)
                with self._started(contestant, contestant.publisher, pace) as publisher:
                    return worker.result(self._limit_s + trial.messages / RATE, fed_by=publisher)
        finally:
            self._queues.purge(trial.queue)

    def _run(self, contestant: Contestant, command: tuple[str, ...], trial: Trial) -> Result:
        with self._started(contestant, command, trial) as process:
            result = process.result(self._limit_s)
            time.sleep(_LAST_ACKS_S)
            return result

    @contextmanager
    def _started(
        self, contestant: Contestant, command: tuple[str, ...], trial: Trial
    ) -> Iterator[_Process]:
        result = Path(self._folder.name, f"{uuid.uuid4().hex}.json")
        filled = trial._asdict() | {
            "url": self._url,
            "result": result,
            "body": json.dumps(ORDER, separators=(",", ":")),
            "envelope": self._body_of(contestant.peer, trial.queue),
            **program_of(contestant.environment),
        }
        environment = (
            os.environ
            | contestant.variables
            | {
                "BENCH_CASE": trial.case,
                "BENCH_BROKER_URL": self._url,
                "BENCH_QUEUE": trial.queue,
                "BENCH_QUEUE_TYPE": trial.queue_type,
                "BENCH_MESSAGES": str(trial.messages),
                "BENCH_RESULT": str(result),
                "EVWORKER_BROKER_URL": self._url,
                "EVWORKER_EXCHANGE": f"{trial.queue}.events",
            }
        )
        process = _Process([word.format(**filled) for word in command], environment, result)
        try:
            yield process
        finally:
            process.end()

    def _body_of(self, peer: str, queue: str) -> str:
        """What the peer's messages hold, once it has published some."""
        sample = self._samples.get((peer, queue))
        return sample[0].body.decode() if sample else ""

    def _left(self, queue: str) -> int:
        """How many messages are back in the queue, because their acks did not arrive."""
        time.sleep(_LAST_ACKS_S)
        return self._queues.depth(queue)

    def _remove(self) -> None:
        for peer_name, queue in self._used:
            peer = PEERS[peer_name]
            for name in peer.queues:
                self._queues.delete_queue(name.format(queue=queue))
            for name in peer.exchanges:
                self._queues.delete_exchange(name.format(queue=queue))
            for name in peer.queue_traces:
                if name not in self._queues_before:
                    self._queues.delete_queue(name)
            for name in peer.exchange_traces:
                if name not in self._exchanges_before:
                    self._queues.delete_exchange(name)


class _Process:
    """A measured process and its children: a session of its own, which a Ctrl-C does not reach."""

    def __init__(self, command: list[str], environment: Mapping[str, str], result: Path) -> None:
        self._result = result
        self._log = result.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def result(self, limit_s: float, *, fed_by: _Process | None = None) -> Result:
        """Wait for what it tells. Raises MeasurementError if it ends without, or takes too long."""
        limit = time.monotonic() + limit_s
        while not self._result.exists():
            if time.monotonic() > limit:
                raise MeasurementError(f"no result after {limit_s:.0f} s{self._last_words()}")
            if self._process.poll() is not None and not self._result.exists():
                code = self._process.returncode
                raise MeasurementError(f"ended with code {code}{self._last_words()}")
            if fed_by is not None:
                fed_by.check()
            time.sleep(0.02)
        result: Result = json.loads(self._result.read_text(encoding="utf-8"))
        return result

    def check(self) -> None:
        """Raises MeasurementError if it has failed; one that is done has not."""
        if code := self._process.poll():
            raise MeasurementError(f"its publisher ended with code {code}{self._last_words()}")

    def end(self) -> None:
        try:
            if self._process.poll() is None:
                self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_S if self._result.exists() else _CLEARING_UP_S)
        finally:  # also when somebody is too impatient for that
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it, or who is left of its session
            self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "".join(f"\n    {line}" for line in lines[-_LOG_LINES:])


def plain_message() -> Captured:
    """The order as JSON, persistent, as any client would publish it."""
    body = json.dumps(ORDER, separators=(",", ":")).encode()
    properties = Basic.Properties(content_type="application/json", delivery_mode=2)
    return Captured(header.ContentHeader(0, len(body), properties).marshal(), body)
