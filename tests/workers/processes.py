"""Worker processes that a test starts, stops and kills.

They are forked off a process that has imported everything and has no threads and no event loop: a
start takes milliseconds, where a new interpreter takes half a second.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from evworker.workers import Plugin
from tests.waiting import eventually
from tests.workers.stage import Stage
from tests.workers.worker_process import MakePlugin, open_done, work

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([work.__module__])

_END_TIMEOUT_S = 120.0


class WorkerProcess:
    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def code(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs."""
        return self._process.exitcode

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    async def ended(self) -> int:
        await eventually(
            lambda: self.code is not None, "the process has ended", timeout_s=_END_TIMEOUT_S
        )
        assert self.code is not None
        return self.code


class Processes:
    """Worker processes that share a queue and write what they did into one file."""

    def __init__(self, stage: Stage, folder: Path, make_plugin: MakePlugin) -> None:
        self.stage = stage
        self.make_plugin = make_plugin
        self._done = folder / "done"
        self._log = folder / "log"
        self._running: list[WorkerProcess] = []

    def start(
        self, make_plugin: MakePlugin | None = None, *, url: str | None = None, **options: Any
    ) -> WorkerProcess:
        """A new process, of the plugin of all or of one of its own."""
        options = {"exchange": self.stage.exchange, **options}
        arguments = (
            make_plugin or self.make_plugin,
            self._done,
            self._log,
            url or self.stage.url,
            options,
        )
        process = _FORKS.Process(target=work, args=arguments)
        process.start()
        started = WorkerProcess(process)
        self._running.append(started)
        return started

    def here(self) -> Plugin:
        """The plugin of the processes, in the test's own process."""
        return self.make_plugin(done=open_done(self._done))

    async def finish(self) -> None:
        """Have a new process work until every queue is empty."""
        process = self.start(burst=True)
        assert await process.ended() == 0, self.log()

    def log(self) -> str:
        """What they have printed."""
        return self._log.read_text()

    def done(self) -> list[str]:
        """The lines that they have written."""
        return self._done.read_text().splitlines() if self._done.exists() else []

    def handled(self) -> Counter[str]:
        """How often, by the first word of each line, which is the event's id."""
        return Counter(line.split()[0] for line in self.done())

    async def until_handled(self, so_many: int) -> None:
        await eventually(lambda: len(self.done()) >= so_many, f"{so_many} handled", timeout_s=60)

    async def end(self) -> None:
        for process in self._running:
            process.kill()
            await process.ended()
