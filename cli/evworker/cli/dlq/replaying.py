"""`evworker dlq replay`: letters go back to the queue that they failed on, and to no other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.dlq import looking, selection
from evworker.cli.failures import WrongError, say
from evworker.cli.rendering import age, counted, show_json_line
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import LetterFilter, Replay, Survey


@click.command(cls=Verb)
@selection.queue_argument
@selection.filters
@selection.limit("Replay at most so many, oldest first.")
@click.option(
    "--rate",
    type=options.Rate(),
    metavar="R",
    help="At most so many letters a second, spread evenly.",
)
@click.option("--to", metavar="NAME", help="Put them into this queue instead of their own.")
@options.inbox_window(
    "How long transactional consumers remember what they have applied; of older letters you are "
    "warned. 0 for no warning."
)
@selection.dry_run
@options.broker_url
@options.as_json(
    "One JSON object: 'dead_letter_queue', 'to', 'filter', 'waiting', 'matched' (of a dry run, "
    "else null), 'replayed', 'hopeless', 'failed_again', 'stopped', 'seconds', 'dry_run'."
)
def replay(  # noqa: PLR0917 - click hands them over by name
    queue: str,
    letters: LetterFilter,
    limit: int | None,
    rate: float | None,
    to: str | None,
    inbox_window_s: float,
    dry_run: bool,
    broker_url: str,
    as_json: bool,
) -> None:
    """Put dead letters of QUEUE back on the queue that they failed on.

    On that one only, or on --to. Each is put there with the broker's confirm and then removed here,
    in order: nothing is lost, whatever happens, and it can simply be run again. Attempts start
    afresh; how it failed before stays on the letter. What comes in meanwhile is left alone, and
    when most of what was replayed fails again, it stops by itself and exits with 1.

    \b
    evworker dlq replay billing.charge --error ConnectionError --dry-run
    evworker dlq replay billing.charge --group 3f9a01c2 --rate 100
    evworker dlq replay events.unrouted --topic 'orders.*' --to billing.charge
    """  # noqa: D301 - click reads \b
    name = selection.dead_letters_of(queue)
    target = selection.target_of(name, to)
    if dry_run:
        survey = interrupts.run(looking.survey(broker_url, name, letters, limit))
        _warn_of_forgotten(survey.oldest, inbox_window_s)
        _show_plan(name, target, letters, survey, as_json=as_json)
        _warn_of_forgotten(survey.oldest, inbox_window_s)
        return
    done = interrupts.run(_replay(broker_url, name, letters, limit, rate, target, inbox_window_s))
    _show_result(done, letters, as_json=as_json)
    if done.was_stopped:
        raise WrongError(
            f"stopped, since they keep failing: {counted(done.failed_again, 'letter')} came into "
            f"{name} while {done.replayed:,} were replayed; look at them with `dlq groups`"
        )


async def _replay(
    broker_url: str,
    name: str,
    letters: LetterFilter,
    limit: int | None,
    rate: float | None,
    to: str,
    inbox_window_s: float,
) -> Replay:
    from evworker.broker import browse_dead_letters, count_messages, replay_dead_letters
    from evworker.cli.sending import Bar

    async with selection.connected(broker_url, changes=True) as connection:
        # They lie there in the order in which they died.
        for oldest in await browse_dead_letters(connection, name, 1, letters):
            _warn_of_forgotten(oldest.died_at, inbox_window_s)
        waiting = await count_messages(connection, name) or 0
        total = min(limit or waiting, waiting) if letters.is_everything else limit
        with Bar(total, doing="replaying", things="letters") as bar:
            return await replay_dead_letters(
                connection, name, letters, to=to, limit=limit, rate=rate, on_progress=bar.at
            )


def _show_plan(name: str, to: str, letters: LetterFilter, survey: Survey, *, as_json: bool) -> None:
    if as_json:
        fields = _fields(name, to, letters, survey.waiting)
        show_json_line(fields | {"matched": survey.matched, "hopeless": survey.hopeless})
        return
    of = f" of {survey.waiting:,}" if survey.matched < survey.waiting else ""
    click.echo(
        f"would replay {counted(survey.matched, 'letter')}{of} from {name} to {to}"
        f"{selection.described(letters)}"
    )
    for (reason, error_type), count in survey.reasons.most_common():
        click.echo(f"  {count:>9,}  {reason}{f'  {error_type}' if error_type else ''}")
    _tell_hopeless(survey.hopeless)


def _show_result(done: Replay, letters: LetterFilter, *, as_json: bool) -> None:
    if as_json:
        fields = _fields(done.queue, done.to, letters, done.waiting)
        fields |= {
            "replayed": done.replayed,
            "hopeless": done.hopeless,
            "failed_again": done.failed_again,
            "stopped": done.was_stopped,
            "seconds": done.seconds,
            "dry_run": False,
        }
        show_json_line(fields)
        return
    if not done.replayed:
        click.echo(f"nothing to replay: {selection.none_in(done.queue, letters)}")
        return
    click.echo(
        f"replayed {counted(done.replayed, 'letter')} of {done.waiting:,} to {done.to} "
        f"in {done.seconds:.1f} s, {done.replayed / done.seconds:,.0f} a second"
    )
    _tell_hopeless(done.hopeless)


def _fields(name: str, to: str, letters: LetterFilter, waiting: int) -> dict[str, Any]:
    """The fields that `dlq replay --json` promises, of one that was not carried out."""
    return {
        "dead_letter_queue": name,
        "to": to,
        "filter": str(letters),
        "waiting": waiting,
        "matched": None,
        "replayed": 0,
        "hopeless": 0,
        "failed_again": 0,
        "stopped": False,
        "seconds": 0.0,
        "dry_run": True,
    }


def _warn_of_forgotten(oldest: datetime | None, inbox_window_s: float) -> None:
    """An inbox can tell that an event was applied only while it remembers it."""
    if not (oldest and inbox_window_s):
        return
    age_s = (datetime.now(UTC) - oldest).total_seconds()
    if age_s > inbox_window_s:
        say(
            f"warning: the oldest of them failed {age(age_s)} ago, but inboxes remember "
            f"{age(inbox_window_s)} (--inbox-window): where a transactional consumer applied "
            "another copy of such a message before that, it will apply this one as well"
        )


def _tell_hopeless(hopeless: int) -> None:
    if hopeless:
        are = "is" if hopeless == 1 else "are"
        say(
            f"note: {hopeless:,} of them {are} undecodable or invalid, and will fail again unless "
            "the consumer has changed; `evworker dlq edit` repairs a letter"
        )
