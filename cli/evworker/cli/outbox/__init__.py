"""`evworker outbox`: events that a transaction has written, until a relay has published them."""

from __future__ import annotations

import click

from evworker.cli.outbox import dead, looking, relaying, tables
from evworker.cli.settings import VerbGroup


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def outbox() -> None:
    """Events that were written in a database transaction, and what publishes them.

    A program writes them with `Outbox.add`, in its own transaction. A relay publishes what was
    committed: `evworker outbox relay`, or `evworker run`, which has one inside. What the broker
    keeps refusing becomes a dead row, which stays until you retry or discard it.
    """


for _verb in (
    tables.init,
    looking.status,
    relaying.relay,
    dead.dead,
    dead.retry,
    dead.discard,
):
    outbox.add_command(_verb)
