"""The real command, run as a process of its own in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from evworker.broker.fastlane.switch import VARIABLE
from tests.cli.forked import call

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr; fails when there are more, or a traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")

    @property
    def audit(self) -> dict[str, Any]:
        """The one line on stderr about what was changed; fails when there are none or more."""
        (line,) = [line for line in self.err.splitlines() if '"evworker.audit"' in line]
        told: dict[str, Any] = json.loads(line)
        return told


class Command:
    """Runs `evworker` in `folder`, which starts empty, with no EVWORKER_ settings but its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {}

    def write(self, name: str, text: str) -> Path:
        """A file in the command's folder."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text), encoding="utf-8")
        return file

    async def __call__(
        self,
        *arguments: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        terminal: int = asyncio.subprocess.PIPE,
    ) -> Result:
        """Run it to its end. `terminal` is a descriptor that it reads from instead of `stdin`."""
        if not stdin and terminal == asyncio.subprocess.PIPE:
            called = await call(arguments, self.folder, self.environment_with(env or {}), TIMEOUT_S)
            code, out, err = called
            return Result(code, out.decode(), err.decode())
        async with self.started(*arguments, env=env, stdin=terminal) as process:
            async with asyncio.timeout(TIMEOUT_S):
                out, err = await process.communicate(stdin or None)
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    def environment_with(self, more: Mapping[str, str]) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("EVWORKER_") or name == VARIABLE
        }
        return {**inherited, **self.environment, **more}

    @asynccontextmanager
    async def started(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: int = asyncio.subprocess.PIPE,
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """The command at work; killed at the end if it has not ended by then."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "evworker",
            *arguments,
            cwd=self.folder,
            env=self.environment_with(env or {}),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


def without_sqlite(evworker: Command) -> None:
    """From now on `started` has none of the extra `sqlite` installed."""
    evworker.write("sitecustomize.py", _WITHOUT_SQLITE)
    evworker.environment["PYTHONPATH"] = str(evworker.folder)


_WITHOUT_SQLITE = """
    from importlib.machinery import PathFinder

    found = PathFinder.find_spec


    def find_spec(name, *more):
        absent = name.partition(".")[0] in ("sqlalchemy", "aiosqlite")
        return None if absent else found(name, *more)


    PathFinder.find_spec = find_spec
"""


async def line_with(stream: asyncio.StreamReader | None, text: str) -> str:
    """The next line of the stream that holds the text."""
    assert stream is not None
    async with asyncio.timeout(TIMEOUT_S):
        while line := (await stream.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"the stream ended without {text!r}")
