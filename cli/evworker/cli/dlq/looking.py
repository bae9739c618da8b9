"""`evworker dlq list`, `groups` and `show`: looking changes nothing and loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.dlq import selection
from evworker.cli.failures import WrongError, say
from evworker.cli.rendering import clock_time, counted, show_json, show_table
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import Letter, LetterFilter, LetterGroup, Survey

SHOWN = 20
_TOP_REASONS = 3


@click.command("list", cls=Verb)
@options.app("Modules whose consumers' dead-letter queues are listed.")
@click.option(
    "-Q",
    "--queue",
    "queues",
    metavar="NAME",
    type=options.comma_list,
    multiple=True,
    callback=options.flatten,
    help="List these work queues only, or instead of -A. Repeat it, or use commas.",
)
@click.option("--counts", is_flag=True, help="Only count, without reading the letters: at once.")
@options.broker_url
@options.as_json(
    "An array of 'queue', 'dead_letter_queue', 'exists', 'messages', 'oldest', 'newest', "
    "'reasons' (an array of 'reason', 'error_type', 'count')."
)
def list_queues(
    app: tuple[str, ...], queues: tuple[str, ...], counts: bool, broker_url: str, as_json: bool
) -> None:
    """How many dead letters each queue has, how old, and mostly why.

    Exits with 1 when a dead-letter queue is missing.
    """
    names = queues or _queues_of(app)
    found = interrupts.run(_survey(broker_url, names, read=not counts))
    if as_json:
        show_json([_queue_fields(name, survey) for name, survey in found])
    elif counts:
        show_table(
            ("dead-letter queue", "messages"),
            [(name, survey and survey.waiting) for name, survey in found],
        )
    else:
        show_table(
            ("dead-letter queue", "messages", "oldest", "newest", "top reasons"),
            [_queue_row(name, survey) for name, survey in found],
        )
    missing = [name for name, survey in found if survey is None]
    if missing:
        raise WrongError(
            f"there is no {', '.join(missing)} on the broker; "
            "a worker makes what its plugins need, or `evworker topology apply`"
        )


@click.command(cls=Verb)
@selection.queue_argument
@selection.filters
@options.broker_url
@options.as_json(
    "An array of 'group', 'count', 'reason', 'error_type', 'error_message', 'frame', 'consumer', "
    "'first_seen', 'last_seen', 'example_id'."
)
def groups(queue: str, letters: LetterFilter, broker_url: str, as_json: bool) -> None:
    """The ways in which letters of QUEUE failed, most frequent first.

    Letters are of one group that have the same exception type, the same innermost frame in your
    code (without its line number), and the same consumer. Every other verb takes --group.
    """
    name = selection.dead_letters_of(queue)
    found = interrupts.run(_group(broker_url, name, letters))
    if as_json:
        show_json([_group_fields(group) for group in found])
        return
    if not found:
        click.echo(selection.none_in(name, letters))
        return
    columns = ("group", "letters", "error", "in", "consumer", "first", "last", "example")
    show_table(columns, [_group_row(group) for group in found])


@click.command(cls=Verb)
@selection.queue_argument
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Show so many letters, oldest first.  [default: {SHOWN}, with --id all]",
)
@selection.filters
@options.broker_url
@options.as_json(
    "An array of 'position', 'id', 'topic', 'reason', 'error_type', 'error_message', 'traceback', "
    "'attempts', 'first_failed_at', 'failed_at', 'consumer', 'host', 'origin_exchange', "
    "'origin_routing_key', 'group', 'frame', 'replays', 'history' (an array of 'at', 'reason', "
    "'error_type', 'error', 'attempts', 'replayed_at'), 'edit_of', 'content_type', 'headers', "
    "'envelope' (the CloudEvents document, or null), 'body' (text, where there is no envelope)."
)
def show(
    queue: str, limit: int | None, letters: LetterFilter, broker_url: str, as_json: bool
) -> None:
    """The dead letters of QUEUE, with the reason on each.

    What failed, where, why and how often, its history over earlier replays, the trace, and the
    event itself.
    """
    from evworker.cli import letters as rendered

    name = selection.dead_letters_of(queue)
    found, waiting = interrupts.run(_browse(broker_url, name, limit, letters))
    if as_json:
        show_json([rendered.as_json(letter) for letter in found])
    else:
        rendered.show(name, found)
        _tell_rest(name, len(found), waiting, letters, limit or SHOWN)
    if letters.ids and not found:
        raise WrongError(f"no letter in {name} has the id {', '.join(map(repr, letters.ids))}")


async def survey(broker_url: str, name: str, letters: LetterFilter, limit: int | None) -> Survey:
    """What there is of the letters that are meant, of which `limit` are enough."""
    from evworker.broker import count_messages, survey_dead_letters
    from evworker.cli.sending import Bar

    async with selection.connected(broker_url) as connection:
        waiting = await count_messages(connection, name)
        with Bar(waiting, doing="reading", things="letters") as bar:
            found = await survey_dead_letters(
                connection, name, letters, limit=limit, on_progress=bar.at
            )
    found.waiting = max(waiting or 0, found.waiting)
    return found


def _tell_rest(name: str, found: int, waiting: int, letters: LetterFilter, limit: int) -> None:
    if letters.is_everything:
        if not found:
            click.echo(f"{name} is empty")
        elif found < waiting:
            say(f"{found:,} of {counted(waiting, 'letter')} shown; see more with --limit")
    elif not letters.ids:
        if not found:
            click.echo(selection.none_in(name, letters))
        elif found == limit:
            say(f"only the first {found:,} shown; see more with --limit")


def _queues_of(app: tuple[str, ...]) -> tuple[str, ...]:
    if not app:
        raise click.UsageError("name the plugins with -A, or queues with --queue")
    from evworker.cli.loading import load

    plugins = load(app, plugins_expected=True).plugins
    consumers = (consumer for plugin in plugins for consumer in plugin.consumers)
    return tuple(dict.fromkeys(consumer.queue for consumer in consumers))


async def _survey(
    broker_url: str, queues: tuple[str, ...], *, read: bool
) -> list[tuple[str, Survey | None]]:
    from evworker.broker import Survey, count_messages, survey_dead_letters
    from evworker.cli.sending import Bar

    found: list[tuple[str, Survey | None]] = []
    async with selection.connected(broker_url) as connection:
        for name in map(selection.dead_letters_of, queues):
            waiting = await count_messages(connection, name)
            survey = None if waiting is None else Survey(waiting=waiting)
            if waiting and read:
                with Bar(waiting, doing="reading", things="letters") as bar:
                    survey = await survey_dead_letters(connection, name, on_progress=bar.at)
            found.append((name, survey))
    return found


async def _group(broker_url: str, name: str, letters: LetterFilter) -> list[LetterGroup]:
    from evworker.broker import count_messages, group_dead_letters
    from evworker.cli.sending import Bar

    async with selection.connected(broker_url) as connection:
        waiting = await count_messages(connection, name)
        with Bar(waiting, doing="reading", things="letters") as bar:
            return await group_dead_letters(connection, name, letters, on_progress=bar.at)


async def _browse(
    broker_url: str, name: str, limit: int | None, letters: LetterFilter
) -> tuple[list[Letter], int]:
    """The letters asked for, and how many there are in all."""
    from evworker.broker import browse_dead_letters, count_messages

    async with selection.connected(broker_url) as connection:
        waiting = await count_messages(connection, name) or 0
        wanted = limit or (max(waiting, 1) if letters.ids else SHOWN)
        return await browse_dead_letters(connection, name, wanted, letters), waiting


def _queue_fields(name: str, survey: Survey | None) -> dict[str, Any]:
    """The fields that `dlq list --json` promises."""
    return {
        "queue": name.removesuffix(".dlq"),
        "dead_letter_queue": name,
        "exists": survey is not None,
        "messages": survey.waiting if survey else 0,
        "oldest": survey.oldest if survey else None,
        "newest": survey.newest if survey else None,
        "reasons": [
            {"reason": reason, "error_type": error_type, "count": count}
            for (reason, error_type), count in (survey.reasons.most_common() if survey else ())
        ],
    }


def _queue_row(name: str, survey: Survey | None) -> tuple[object, ...]:
    if survey is None:
        return name, None, None, None, None
    top = ", ".join(
        f"{error_type or reason} {count:,}"
        for (reason, error_type), count in survey.reasons.most_common(_TOP_REASONS)
    )
    more = ", …" if len(survey.reasons) > _TOP_REASONS else ""
    return (
        name,
        survey.waiting,
        clock_time(survey.oldest),
        clock_time(survey.newest),
        f"{top}{more}" or None,
    )


def _group_fields(group: LetterGroup) -> dict[str, Any]:
    """The fields that `dlq groups --json` promises."""
    return {
        "group": group.group,
        "count": group.count,
        "reason": group.reason,
        "error_type": group.error_type,
        "error_message": group.error_message,
        "frame": group.frame,
        "consumer": group.consumer,
        "first_seen": group.first_seen,
        "last_seen": group.last_seen,
        "example_id": group.example_id,
    }


def _group_row(group: LetterGroup) -> tuple[object, ...]:
    return (
        group.group,
        group.count,
        group.error_type or group.reason,
        group.frame,
        group.consumer,
        clock_time(group.first_seen),
        clock_time(group.last_seen),
        group.example_id,
    )
