"""The command in a process that has imported everything already: forked, where it would be started.

An interpreter of its own takes a quarter of a second of a core for each call, and hundreds of calls
are made. What is about a start, a signal, a pipe or a terminal is tried on real ones.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

# What the verbs import when they are called.
import evworker.cli.loading
import evworker.cli.logs
import evworker.cli.sending
import evworker.workers  # noqa: F401
from evworker.cli.main import VERBS, LazyGroup, main

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


async def call(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float
) -> tuple[int, bytes, bytes]:
    """The exit code, stdout and stderr of one call without input."""
    name = uuid.uuid4().hex  # a test may call twice at once
    out, err = folder / f".{name}.stdout", folder / f".{name}.stderr"
    process = _FORKS.Process(
        target=_be_the_command, args=(arguments, folder, dict(environment), out, err)
    )
    await asyncio.to_thread(process.start)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process.sentinel, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
        process.kill()
        process.join()
    assert process.exitcode is not None
    code, told = process.exitcode, (out.read_bytes(), err.read_bytes())
    process.close()
    out.unlink()
    err.unlink()
    return code, *told


def _be_the_command(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], out: Path, err: Path
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["evworker", *arguments]
    sys.path.insert(0, str(folder))
    main(list(arguments))


if __name__ != "__main__":
    for verb in VERBS:
        LazyGroup().get_command(None, verb)  # type: ignore[arg-type]  # it does not look at it
