"""Which letters of which queue are meant: the arguments and options that the verbs share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from evworker.cli.failures import WrongError
from evworker.cli.settings import did_you_mean

if TYPE_CHECKING:
    from evworker.broker import Connection, LetterFilter

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--group",
        "groups",
        metavar="HASH",
        multiple=True,
        help="Only letters that failed in this way; `dlq groups` shows the hashes.",
    ),
    click.option(
        "--error",
        "errors",
        metavar="TYPE",
        multiple=True,
        help="Only letters with this exception type, with or without its module.",
    ),
    click.option(
        "--reason",
        "reasons",
        metavar="REASON",
        multiple=True,
        help="Only letters that are there for this reason, such as failed or crashed.",
    ),
    click.option(
        "--topic",
        "topics",
        metavar="PATTERN",
        multiple=True,
        help="Only events of this topic; * is one word, # any number of them.",
    ),
    click.option(
        "--id", "ids", metavar="TEXT", multiple=True, help="Only the letters of this event."
    ),
    click.option(
        "--since",
        metavar="TIME",
        help="Only what failed since then: 2026-11-23T14:00, or how long ago: 2h, 3d.",
    ),
    click.option("--until", metavar="TIME", help="Only what had failed by then."),
    click.option(
        "--where",
        metavar="FIELD=VALUE",
        multiple=True,
        help="Only events whose data is so: order_id=42, customer.country!=FR, total>100. Of "
        "several conditions all must hold; of several values of another option, one.",
    ),
)

queue_argument = click.argument("queue")


def filters(command: F) -> F:
    """The filter options, handed to the command as one value, `letters`."""

    @wraps(command)
    def filtered(  # click hands them over by name
        *,
        groups: tuple[str, ...],
        errors: tuple[str, ...],
        reasons: tuple[str, ...],
        topics: tuple[str, ...],
        ids: tuple[str, ...],
        since: str | None,
        until: str | None,
        where: tuple[str, ...],
        **others: Any,
    ) -> Any:
        from evworker.broker import Condition, LetterFilter, check_pattern, parse_moment

        _check_reasons(reasons)
        letters = LetterFilter(
            groups=groups,
            errors=errors,
            reasons=reasons,
            topics=tuple(map(check_pattern, topics)),
            ids=ids,
            since=parse_moment(since) if since else None,
            until=parse_moment(until) if until else None,
            where=tuple(map(Condition.parse, where)),
        )
        return command(letters=letters, **others)

    for option in reversed(_OPTIONS):
        filtered = option(filtered)
    return filtered  # type: ignore[return-value]  # as far as click is concerned


def limit(help_text: str) -> Callable[[F], F]:
    return click.option("--limit", type=click.IntRange(min=1), metavar="N", help=help_text)


def dry_run(command: F) -> F:
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(
        command
    )


def dead_letters_of(queue: str) -> str:
    """The name of the queue that holds the letters, whichever of the two was named."""
    from evworker.broker import dead_letter_queue

    return dead_letter_queue(queue)


def target_of(name: str, to: str | None) -> str:
    """Where letters go back to; raises a usage error where nobody can know."""
    from evworker.broker import origin_queue

    if to is None and not name.endswith(".dlq"):
        raise click.UsageError(f"the letters of {name} never failed on a queue: name one with --to")
    if to == name:
        raise click.UsageError(
            f"the letters of {name} are there already: name another queue with --to"
        )
    return to or origin_queue(name)


@asynccontextmanager
async def connected(broker_url: str, *, changes: bool = False) -> AsyncIterator[Connection]:
    """A connection for one verb. What changes something has its audit line shown."""
    from evworker.broker import Connection, QueueNotFoundError
    from evworker.cli.logs import configure_logs

    if changes:
        configure_logs("info")
    else:
        configure_logs("warning", "console")
    async with Connection(broker_url, name="evworker dlq") as connection:
        try:
            yield connection
        except QueueNotFoundError as error:
            raise WrongError(
                f"{error}; `evworker dlq list -A MODULE` tells the names, and `evworker topology "
                "apply -A MODULE` makes what is missing"
            ) from error


def _check_reasons(reasons: tuple[str, ...]) -> None:
    from evworker.broker.failure import Reason

    known: tuple[str, ...] = Reason.__args__  # type: ignore[attr-defined]
    for reason in reasons:
        if reason not in known:
            raise click.UsageError(
                f"there is no reason {reason!r}{did_you_mean(reason, known)} "
                f"There are: {', '.join(known)}"
            )


def described(letters: LetterFilter) -> str:
    """`` with error=CardDeclined``, or nothing when all are meant."""
    return "" if letters.is_everything else f" with {letters}"


def none_in(name: str, letters: LetterFilter) -> str:
    return f"{name} has no letters{described(letters)}"
