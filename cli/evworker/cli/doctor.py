"""`evworker doctor`: can broker, database and plugins keep the promises, and what if not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import database, interrupts, options
from evworker.cli.failures import WrongError
from evworker.cli.rendering import counted, on_terminal, printable, show_json
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.workers import Finding

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}


@click.command(cls=Verb)
@options.app("Modules whose plugins are examined.")
@options.broker_url
@options.exchange
@click.option(
    "--ack-timeout",
    type=options.seconds,
    metavar="DURATION",
    default="30m",
    show_default=True,
    help="The broker's consumer_timeout, which it tells nobody: after that long it takes back what "
    "is not acked. 0 if it has none.",
)
@options.database_url
@options.inbox_window("How long transactional consumers remember what they have applied.")
@options.as_json(
    "An array of 'level' (ok, note, warning, problem), 'check', 'subject', 'found', 'fix'."
)
def doctor(
    app: tuple[str, ...],
    broker_url: str,
    exchange: str,
    ack_timeout: float,
    database_url: str | None,
    inbox_window_s: float,
    as_json: bool,
) -> None:
    """Whether broker, database and plugins can keep the promises, and what to do if not.

    Connects and looks, over AMQP and SQL alone; nothing is changed. Exits with 1 when there is a
    problem. Warnings and notes alone are 0.
    """
    if database_url:
        database.check_installed(database_url)
    found = interrupts.run(
        _examine(broker_url, app, exchange, ack_timeout or None, database_url, inbox_window_s)
    )
    if as_json:
        show_json([_fields(finding) for finding in found])
    else:
        _show(found)
    problems = sum(finding.level == "problem" for finding in found)
    if problems:
        raise WrongError(_summary(found))
    if not as_json:
        click.echo(f"fit to keep the promises: {_summary(found)}")


async def _examine(
    broker_url: str,
    app: tuple[str, ...],
    exchange: str,
    ack_timeout_s: float | None,
    database_url: str | None,
    inbox_window_s: float,
) -> list[Finding]:
    from evworker.broker import Connection
    from evworker.cli.loading import load
    from evworker.cli.logs import configure_logs
    from evworker.workers import examine

    configure_logs("warning", "console")
    plugins = load(app, plugins_expected=True).plugins
    async with Connection(broker_url, name="evworker doctor") as connection:
        return await examine(
            plugins,
            connection,
            exchange,
            ack_timeout_s=ack_timeout_s,
            database=database_url,
            inbox_window_s=inbox_window_s,
        )


def _show(found: Iterable[Finding]) -> None:
    """A line for what was found, and one below it for the fix."""
    found = list(found)
    level = max(len(finding.level) for finding in found)
    check = max(len(finding.check) for finding in found)
    margin = " " * (level + check + 4)
    for finding in found:
        word = f"{finding.level:<{level}}"
        if on_terminal():
            word = click.style(word, fg=_COLOURS[finding.level], bold=finding.level == "problem")
        told = printable(f"{finding.subject}: {finding.found}")
        click.echo(f"{word}  {finding.check:<{check}}  {told}")
        if finding.fix:
            click.echo(f"{margin}fix: {printable(finding.fix)}")


def _summary(found: Iterable[Finding]) -> str:
    levels = [finding.level for finding in found]
    return ", ".join(
        counted(levels.count(level), level)
        for level in ("problem", "warning", "note")
        if level in levels
    )


def _fields(finding: Finding) -> dict[str, Any]:
    """The fields that `doctor --json` promises."""
    return {
        "level": finding.level,
        "check": finding.check,
        "subject": finding.subject,
        "found": finding.found,
        "fix": finding.fix,
    }
