"""The database that a verb works on: named somewhere, its driver installed, closed at the end."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click

from evworker.cli.failures import UsageError, WrongError, say

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_EXTRAS = {"mysql": "mysql", "mariadb": "mysql", "sqlite": "sqlite"}


def named(url: str | None) -> str:
    """The URL; raises UsageError that says where to name it."""
    if not url:
        raise click.UsageError(
            "no database: name it with -d/--database-url, in EVWORKER_DATABASE_URL, or as "
            "database-url in [tool.evworker]"
        )
    return url


def check_installed(url: str) -> None:
    """Raises UsageError that names the extra to install, where evworker was installed without."""
    try:
        import sqlalchemy  # noqa: F401 - whether it is there is the question
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(url.partition(":")[0].partition("+")[0], "postgres")
        raise UsageError(
            f"SQLAlchemy is not installed, and without it there is no outbox and no inbox; "
            f"pip install 'evworker[{extra}]' brings it with the driver"
        ) from error


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[AsyncEngine]:
    """An engine for one verb. Raises UsageError or DatabaseUrlError, before it connects."""
    url = named(url)
    check_installed(url)
    from evworker.broker.database.engine import open_engine

    engine = open_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


def confirm(what: str, answer: str, called: str) -> None:
    """Say what will be done for good, and ask for `answer`; any other one ends the verb.

    Raises WrongError then, and UsageError where nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}. Add --yes, or look first with --dry-run")
    say(what)
    given = click.prompt(f"Type {called} to go on", default="", show_default=False, err=True)
    if given.strip() != answer:
        raise WrongError(f"that is not {called}; nothing was done")
