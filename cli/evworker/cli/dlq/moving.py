"""`evworker dlq export` and `import`: letters as lines of a file, and back, byte for byte."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.dlq import consent, selection
from evworker.cli.failures import UsageError, WrongError, say
from evworker.cli.json_input import open_stream, read_lines
from evworker.cli.rendering import counted, show_json_line
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import Exported, Imported, LetterFilter
    from evworker.cli.sending import Bar


@click.command(cls=Verb)
@selection.queue_argument
@selection.filters
@selection.limit("Export at most so many, oldest first.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write to a new file instead of stdout; one that is there already is never touched.",
)
@click.option(
    "--remove",
    is_flag=True,
    help="Remove each letter once its line is on disk. Needs --output, and --yes where there is no "
    "terminal.",
)
@click.option("--yes", is_flag=True, help="Don't ask before --remove.")
@selection.dry_run
@options.broker_url
@options.as_json(
    "With --output, one JSON object: 'dead_letter_queue', 'filter', 'file', 'matched', 'exported', "
    "'removed', 'dry_run'. The letters are JSON always: a line each of 'format', 'queue', 'id', "
    "'topic', 'reason', 'origin_exchange', 'origin_routing_key', 'properties', 'headers', and "
    "'body' or 'body_base64'."
)
def export(  # noqa: PLR0917 - click hands them over by name
    queue: str,
    letters: LetterFilter,
    limit: int | None,
    output: str | None,
    remove: bool,
    yes: bool,
    dry_run: bool,
    broker_url: str,
    as_json: bool,
) -> None:
    """Write dead letters of QUEUE as lines of JSON.

    Each line has all that it takes to bring the letter back, byte for byte. They stay where they
    are, unless --remove is given.

    \b
    evworker dlq export billing.charge -o letters.ndjson
    evworker dlq export billing.charge --group 3f9a01c2 | jq -r .id
    """  # noqa: D301 - click reads \b
    name = selection.dead_letters_of(queue)
    if remove and output is None:
        raise click.UsageError("--remove needs a file: name one with --output")
    if as_json and output is None:
        raise click.UsageError("stdout has the letters, as JSON: --json goes with --output")
    exported = removed = 0
    if dry_run or (remove and not yes):
        what = "exported, and removed"
        matched = limit = consent.agreed(broker_url, name, letters, limit, what, yes=dry_run)
    if not dry_run:
        # No more than was said, though more may fit by now.
        done = interrupts.run(_export(broker_url, name, letters, limit, output, remove=remove))
        matched, exported, removed = done.letters, done.letters, done.removed
    if as_json:
        fields: dict[str, Any] = {
            "dead_letter_queue": name,
            "filter": str(letters),
            "file": output,
            "matched": matched,
            "exported": exported,
            "removed": removed,
            "dry_run": dry_run,
        }
        show_json_line(fields)
    elif dry_run:
        say(f"would export {counted(matched, 'letter')} of {name}{selection.described(letters)}")
    else:
        gone = ", and removed them" if removed else ""
        where = f" to {output}" if output else ""
        say(f"exported {counted(exported, 'letter')} of {name}{where}{gone}")


@click.command("import", cls=Verb)
@selection.queue_argument
@click.argument("file", metavar="FILE|-")
@selection.limit("Import at most so many.")
@selection.dry_run
@options.broker_url
@options.as_json(
    "One JSON object: 'dead_letter_queue', 'imported', 'refused', 'seconds', 'dry_run'."
)
def import_letters(
    queue: str, file: str, limit: int | None, dry_run: bool, broker_url: str, as_json: bool
) -> None:
    """Bring exported letters back into the dead-letter queue of QUEUE.

    FILE is what `evworker dlq export` has written; lines that are no letters are told on stderr,
    the others are imported, and the exit code is 1. To put them back to work, replay them.
    """
    name = selection.dead_letters_of(queue)
    descriptor, size = open_stream(file)
    started = time.monotonic()
    done = interrupts.run(_import(broker_url, name, descriptor, size, limit, dry_run=dry_run))
    seconds = time.monotonic() - started
    if as_json:
        fields: dict[str, Any] = {
            "dead_letter_queue": name,
            "imported": done.letters,
            "refused": done.refused,
            "seconds": seconds,
            "dry_run": dry_run,
        }
        show_json_line(fields)
    else:
        did = "would import" if dry_run else "imported"
        click.echo(f"{did} {counted(done.letters, 'letter')} into {name}")
    if done.refused:
        raise WrongError(f"{counted(done.refused, 'line')} refused; each is told above")


async def _export(
    broker_url: str,
    name: str,
    letters: LetterFilter,
    limit: int | None,
    output: str | None,
    *,
    remove: bool,
) -> Exported:
    from evworker.broker import count_messages, export_dead_letters
    from evworker.cli.sending import Bar

    async with selection.connected(broker_url, changes=remove) as connection:
        total = await count_messages(connection, name) if letters.is_everything else limit
        with _writer(output) as write, Bar(total, doing="exporting", things="letters") as bar:
            return await export_dead_letters(
                connection, name, write, letters, limit=limit, remove=remove, on_progress=bar.at
            )


@contextmanager
def _writer(output: str | None) -> Iterator[Callable[[bytes], None]]:
    """What writes lines to stdout, or to a new file, where they are on disk when it returns."""
    if output is None:

        def write_out(lines: bytes) -> None:
            sys.stdout.buffer.write(lines)
            sys.stdout.buffer.flush()

        yield write_out
        return
    path = Path(output)
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise UsageError(f"{output!r} is there already; name a new file") from error
    except OSError as error:
        raise UsageError(f"can't write {output!r}: {error.strerror}") from error
    with file, _removed_if_empty(path):
        _sync_folder(path.parent)

        def write_file(lines: bytes) -> None:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

        yield write_file


@contextmanager
def _removed_if_empty(path: Path) -> Iterator[None]:
    """An export that failed at once leaves no file in the way of the next."""
    try:
        yield
    except BaseException:
        if not path.stat().st_size:
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Have the file's name on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _import(
    broker_url: str,
    name: str,
    descriptor: int,
    size: int | None,
    limit: int | None,
    *,
    dry_run: bool,
) -> Imported:
    from evworker.broker import import_dead_letters
    from evworker.cli.sending import Bar

    with Bar(size, doing="importing", things="letters") as bar:

        def refuse(number: int, why: str) -> None:
            bar.say(f"line {number}: {why}")

        lines = _lines(descriptor, bar)
        if dry_run:
            return await _check(lines, limit, refuse)
        async with selection.connected(broker_url, changes=True) as connection:
            return await import_dead_letters(connection, name, lines, limit=limit, refuse=refuse)


async def _check(
    lines: AsyncIterator[tuple[int, bytes | None]],
    limit: int | None,
    refuse: Callable[[int, str], None],
) -> Imported:
    from evworker.broker import Imported, UndecodableError
    from evworker.broker.deadletters.transfer import from_line

    checked = Imported()
    async for number, line in lines:
        if checked.letters == limit:
            break
        try:
            from_line(line)
            checked.letters += 1
        except UndecodableError as error:
            checked.refused += 1
            refuse(number, str(error))
    return checked


async def _lines(descriptor: int, bar: Bar) -> AsyncIterator[tuple[int, bytes | None]]:
    async for line in read_lines(descriptor):
        yield line.number, line.body
        bar.advance(line.size, line.number)
