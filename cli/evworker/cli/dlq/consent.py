"""How many letters are meant, and whether the user agrees to lose them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from evworker.cli import interrupts
from evworker.cli.dlq import looking, selection
from evworker.cli.failures import WrongError, say
from evworker.cli.rendering import counted

if TYPE_CHECKING:
    from evworker.broker import LetterFilter


def agreed(
    broker_url: str, name: str, letters: LetterFilter, limit: int | None, what: str, *, yes: bool
) -> int:
    """How many letters are meant, once somebody has typed the queue's name, or said yes before.

    `what` is what happens to them, such as "removed for good". Raises UsageError where nobody can
    be asked, and WrongError for any other answer.
    """
    if not (yes or sys.stdin.isatty()):
        raise click.UsageError(f"letters will be {what}: add --yes, or look first with --dry-run")
    matched = interrupts.run(_count(broker_url, name, letters, limit))
    if matched and not yes:
        _ask(name, f"{counted(matched, 'letter')} will be {what} from {name}")
    return matched


def _ask(name: str, what: str) -> None:
    say(what)
    answer = click.prompt(
        "Type the queue's name to go on", default="", show_default=False, err=True
    )
    if answer.strip() not in {name, name.removesuffix(".dlq")}:
        raise WrongError("that is not its name; nothing was removed")


async def _count(broker_url: str, name: str, letters: LetterFilter, limit: int | None) -> int:
    """Reads the letters only where they have to be known."""
    from evworker.broker import QueueNotFoundError, count_messages

    if not letters.is_everything:
        return (await looking.survey(broker_url, name, letters, limit)).matched
    async with selection.connected(broker_url) as connection:
        waiting = await count_messages(connection, name)
        if waiting is None:
            raise QueueNotFoundError(f"there is no queue {name!r} on {connection.address}")
    return min(limit or waiting, waiting)
