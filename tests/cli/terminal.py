"""The command on a terminal of its own: what it asks there, and what somebody types."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import Mapping

from tests.cli.command import TIMEOUT_S, Command


async def on_terminal(
    evworker: Command,
    *arguments: str,
    answers: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run the command, and type each answer once its question is there; its code and screen."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "evworker",
        *arguments,
        cwd=evworker.folder,
        env=evworker.environment_with(
            {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "200", **(env or {})}
        ),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            screen = await asyncio.to_thread(_converse, ours, dict(answers or {}))
            return await process.wait(), screen
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


def _converse(terminal: int, answers: dict[str, str]) -> str:
    screen = ""
    asked_from = 0
    while True:
        try:
            read = os.read(terminal, 65_536)
        except OSError:  # what Linux says when the other end is closed
            return screen
        if not read:
            return screen
        screen += read.decode("utf-8", "replace")
        for question, answer in list(answers.items()):
            at = screen.find(question, asked_from)
            if at >= 0:
                asked_from = at + len(question)
                os.write(terminal, f"{answer}\n".encode())
                del answers[question]
