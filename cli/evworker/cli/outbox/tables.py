"""`evworker outbox init`: make the tables, or print the statements that do."""

from __future__ import annotations

import click

from evworker.cli import database, interrupts, options
from evworker.cli.settings import Verb

DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite")


@click.command(cls=Verb)
@options.database_url
@click.option("--sql", is_flag=True, help="Print the statements instead, and connect to nothing.")
@click.option(
    "--dialect",
    type=click.Choice(DIALECTS),
    help="Of --sql: for which database.  [default: that of the URL]",
)
def init(database_url: str | None, sql: bool, dialect: str | None) -> None:
    """Make the tables of outbox and inbox where they are missing.

    Nothing that is there is changed, so it can be run at each deployment. Where your migrations
    are to make them, --sql prints the statements; Alembic sees the tables as `evworker_metadata`,
    see docs/outbox.md.

    \b
    evworker outbox init -d postgresql://shop@db/shop
    evworker outbox init --sql --dialect postgresql > migrations/0042_outbox.sql
    """  # noqa: D301 - click reads \b
    if dialect and not sql:
        raise click.UsageError("--dialect goes with --sql: tables are made in the URL's database")
    if sql:
        click.echo(_statements(database_url, dialect), nl=False)
    else:
        click.echo(interrupts.run(_make(database_url)))


async def _make(database_url: str | None) -> str:
    async with database.opened(database_url) as engine:
        from evworker.broker.database.engine import address_of
        from evworker.broker.database.schema import check_tables, make_tables

        made = await make_tables(engine)
        # What an older version has made is not changed here, and it says how to.
        await check_tables(engine)
        where = address_of(engine)
    return f"made {', '.join(made)} in {where}" if made else f"all tables are there, in {where}"


def _statements(database_url: str | None, dialect: str | None) -> str:
    if dialect is None:
        scheme = database.named(database_url).partition(":")[0].partition("+")[0]
        dialect = "postgresql" if scheme == "postgres" else scheme
    database.check_installed(dialect)
    from evworker.broker.database.schema import ddl

    return ddl(dialect)
