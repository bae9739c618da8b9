"""`evworker outbox dead`, `retry` and `discard`: rows that the broker kept refusing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evworker.cli import database, interrupts, options
from evworker.cli.failures import WrongError, say
from evworker.cli.rendering import clock_time, counted, show_json, show_json_line, show_table
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from evworker.broker.outbox.operating import DeadRow

_LONGEST_ERROR = 100


@click.command(cls=Verb)
@options.database_url
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=100,
    show_default=True,
    help="Show at most so many, oldest first.",
)
@options.as_json(
    "An array of 'seq', 'event_id', 'topic', 'key', 'created_at', 'attempts', 'failed_since', "
    "'last_error', 'envelope'."
)
def dead(database_url: str | None, limit: int, as_json: bool) -> None:
    """Rows that the broker kept refusing, and why.

    A dead row keeps the later ones of its key waiting, so that their order holds: retry it once the
    reason is gone, or discard it. Events without a key wait for nobody.
    """
    rows, more = interrupts.run(_look(database_url, limit))
    if as_json:
        show_json([_fields(row) for row in rows])
        return
    if not rows:
        click.echo("no dead rows")
        return
    show_table(
        ("seq", "topic", "key", "written", "refused since", "attempts", "last error"),
        [
            (
                str(row.seq),
                row.topic,
                row.key,
                clock_time(row.created_at),
                clock_time(row.failed_since),
                row.attempts,
                _first_line(row.last_error),
            )
            for row in rows
        ],
    )
    if more:
        say(f"note: there are more; --limit {2 * limit} shows some of them")


@click.command(cls=Verb)
@click.argument("seqs", metavar="[SEQ]...", nargs=-1, type=click.IntRange(min=1))
@click.option("--all", "every", is_flag=True, help="All dead rows.")
@options.database_url
@options.as_json("One JSON object: 'retried'.")
def retry(seqs: tuple[int, ...], every: bool, database_url: str | None, as_json: bool) -> None:
    """Have dead rows published again: those named by their SEQ, or --all.

    Their attempts start afresh, and they go before the later rows of their key. `evworker outbox
    dead` has the numbers.
    """
    _check_choice(seqs, every=every)
    done = interrupts.run(_retry(database_url, seqs))
    if as_json:
        show_json_line({"retried": done})
    elif done or every:
        click.echo(f"{counted(done, 'row')} ready again" if done else "no row is ready again")
    _tell_missing(seqs, done)


@click.command(cls=Verb)
@click.argument("seqs", metavar="[SEQ]...", nargs=-1, type=click.IntRange(min=1))
@click.option("--all", "every", is_flag=True, help="All dead rows.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Don't ask. Needed where there is no terminal.")
@options.database_url
@options.as_json("One JSON object: 'matched', 'discarded', 'dry_run'.")
def discard(
    seqs: tuple[int, ...],
    every: bool,
    dry_run: bool,
    yes: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Remove dead rows for good: those named by their SEQ, or --all.

    Their events are never published, although their transactions were committed. What waits behind
    them goes on. Says how many first and asks for that number, unless --yes is given.
    """
    _check_choice(seqs, every=every)
    matched = interrupts.run(_count(database_url, seqs))
    discarded = 0
    if matched and not dry_run:
        if not yes:
            what = f"{counted(matched, 'committed event')} will never be published"
            database.confirm(what, str(matched), "the number")
        discarded = interrupts.run(_discard(database_url, seqs, matched))
    if as_json:
        show_json_line({"matched": matched, "discarded": discarded, "dry_run": dry_run})
    elif matched or every:
        done = counted(discarded, "row")
        click.echo(f"would discard {counted(matched, 'row')}" if dry_run else f"discarded {done}")
    _tell_missing(seqs, matched)


async def _look(database_url: str | None, limit: int) -> tuple[list[DeadRow], bool]:
    """The first rows, and whether there are more."""
    async with database.opened(database_url) as engine:
        from evworker.broker.outbox.operating import dead_rows

        rows = await dead_rows(engine, limit=limit + 1)
        return rows[:limit], len(rows) > limit


async def _retry(database_url: str | None, seqs: tuple[int, ...]) -> int:
    async with database.opened(database_url) as engine:
        from evworker.broker.outbox.operating import retry_dead

        return await retry_dead(engine, seqs or None)


async def _count(database_url: str | None, seqs: tuple[int, ...]) -> int:
    async with database.opened(database_url) as engine:
        return len(await _chosen(engine, seqs))


async def _discard(database_url: str | None, seqs: tuple[int, ...], most: int) -> int:
    """Discard no more than was agreed to, though there may be more by now."""
    from evworker.cli.logs import configure_logs

    configure_logs("info")
    async with database.opened(database_url) as engine:
        import structlog

        from evworker.broker.deadletters.audit import who
        from evworker.broker.outbox.operating import discard_dead

        rows = (await _chosen(engine, seqs))[:most]
        discarded = await discard_dead(engine, [row.seq for row in rows])
        structlog.get_logger("evworker.audit").info(
            "dead rows discarded",
            action="discard",
            who=who(),
            count=discarded,
            seqs=[row.seq for row in rows],
            event_ids=[row.event_id for row in rows],
        )
        return discarded


async def _chosen(engine: AsyncEngine, seqs: tuple[int, ...]) -> list[DeadRow]:
    from evworker.broker.outbox.operating import dead_rows, outbox_status

    rows = await dead_rows(engine, limit=(await outbox_status(engine)).dead)
    return [row for row in rows if not seqs or row.seq in seqs]


def _check_choice(seqs: tuple[int, ...], *, every: bool) -> None:
    if bool(seqs) == every:
        raise click.UsageError("name rows by their SEQ, or take --all; `evworker outbox dead`")


def _tell_missing(seqs: tuple[int, ...], found: int) -> None:
    named = len(set(seqs))
    if found < named:
        are = "is" if named - found == 1 else "are"
        which = f"{named - found:,} of the {named:,} rows named" if named > 1 else f"row {seqs[0]}"
        raise WrongError(
            f"{which} {are} not dead, or not there; `evworker outbox dead` shows those that are"
        )


def _fields(row: DeadRow) -> dict[str, Any]:
    """The fields that `outbox dead --json` promises."""
    import msgspec

    return {
        "seq": row.seq,
        "event_id": row.event_id,
        "topic": row.topic,
        "key": row.key,
        "created_at": row.created_at,
        "attempts": row.attempts,
        "failed_since": row.failed_since,
        "last_error": row.last_error,
        "envelope": msgspec.Raw(row.body),
    }


def _first_line(text: str | None) -> str | None:
    line = (text or "").partition("\n")[0]
    return f"{line[:_LONGEST_ERROR]}…" if len(line) > _LONGEST_ERROR else line or None
