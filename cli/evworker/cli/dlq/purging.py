"""`evworker dlq purge`: letters are removed for good, and never without being asked for twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.dlq import consent, selection
from evworker.cli.rendering import counted, show_json_line
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import LetterFilter


@click.command(cls=Verb)
@selection.queue_argument
@selection.filters
@selection.limit("Remove at most so many, oldest first.")
@selection.dry_run
@click.option("--yes", is_flag=True, help="Don't ask. Needed where there is no terminal.")
@options.broker_url
@options.as_json("One JSON object: 'dead_letter_queue', 'filter', 'matched', 'removed', 'dry_run'.")
def purge(
    queue: str,
    letters: LetterFilter,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    broker_url: str,
    as_json: bool,
) -> None:
    """Remove dead letters of QUEUE for good.

    Says how many first, and asks for the queue's name, unless --yes is given. What comes in
    meanwhile is left alone. `evworker dlq export` keeps a copy.
    """
    name = selection.dead_letters_of(queue)
    matched = consent.agreed(
        broker_url, name, letters, limit, "removed for good", yes=yes or dry_run
    )
    removed = 0
    if matched and not dry_run:
        removed = interrupts.run(_purge(broker_url, name, letters, matched))
    if as_json:
        fields: dict[str, Any] = {
            "dead_letter_queue": name,
            "filter": str(letters),
            "matched": matched,
            "removed": removed,
            "dry_run": dry_run,
        }
        show_json_line(fields)
    elif not matched:
        click.echo(selection.none_in(name, letters))
    elif dry_run:
        click.echo(
            f"would remove {counted(matched, 'letter')} from {name}{selection.described(letters)}"
        )
    else:
        click.echo(f"removed {counted(removed, 'letter')} from {name}")


async def _purge(broker_url: str, name: str, letters: LetterFilter, limit: int) -> int:
    from evworker.broker import purge_dead_letters
    from evworker.cli.sending import Bar

    async with selection.connected(broker_url, changes=True) as connection:
        with Bar(limit, doing="removing", things="letters") as bar:
            # No more than was said, though more may fit by now.
            return await purge_dead_letters(
                connection, name, letters, limit=limit, on_progress=bar.at
            )
