"""`evworker dlq`: dead letters as work, looked at, put back, repaired, moved, removed."""

from __future__ import annotations

import click

from evworker.cli.dlq import editing, looking, moving, purging, replaying
from evworker.cli.settings import VerbGroup


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def dlq() -> None:
    """Work on dead letters: messages that failed for good, with the reason on them.

    They lie in <queue>.dlq. Looking at them changes nothing and loses nothing, however often; what
    changes something says so in one line of the log. QUEUE is always the name of the work queue or
    of its dead-letter queue, or <exchange>.unrouted.
    """


for _verb in (
    looking.list_queues,
    looking.groups,
    looking.show,
    replaying.replay,
    editing.edit,
    moving.export,
    moving.import_letters,
    purging.purge,
):
    dlq.add_command(_verb)
