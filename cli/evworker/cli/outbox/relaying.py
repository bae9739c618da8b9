"""`evworker outbox relay`: publish what was committed, until told to stop."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import database, options
from evworker.cli.event_loop import run_for_long
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import Relay
    from evworker.cli.logs import LogFormat


@click.command(cls=Verb)
@options.database_url
@options.broker_url
@options.exchange
@click.option(
    "--name",
    metavar="TEXT",
    help="How `outbox status` calls it.  [default: host and process id]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=1_000,
    show_default=True,
    help="How many rows it claims at once.",
)
@click.option(
    "--lease",
    "lease_s",
    type=options.seconds,
    metavar="DURATION",
    default="60s",
    show_default=True,
    help="After so long another relay takes over what this one has claimed and not finished.",
)
@click.option(
    "--keep",
    "keep_s",
    type=options.seconds,
    metavar="DURATION",
    help="Keep rows so long after they were published.  [default: remove them at once]",
)
@click.option(
    "--dead-after",
    "dead_after_s",
    type=options.seconds,
    metavar="DURATION",
    default="24h",
    show_default=True,
    help="What the broker refuses is dead no sooner than this after its first refusal,",
)
@click.option(
    "--dead-after-attempts",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    show_default=True,
    help="and after no fewer attempts than this. A broker that is away counts as none.",
)
@options.logging
def relay(  # noqa: PLR0917 - click hands them over by name
    database_url: str | None,
    broker_url: str,
    exchange: str,
    name: str | None,
    batch: int,
    lease_s: float,
    keep_s: float | None,
    dead_after_s: float,
    dead_after_attempts: int,
    log_format: LogFormat | None,
    log_level: str,
) -> None:
    """Publish the events of the outbox until told to stop.

    Any number of relays may run at once, on any hosts: they share the rows, and the events of one
    key keep their order. `evworker run` has a relay inside; this one is for programs that only
    write events, or to keep publishing apart from handling.

    SIGTERM and SIGINT stop it gracefully: what is on its way to the broker is awaited, what was not
    sent is handed back. A second signal stops it at once; what it had claimed is published by
    another relay when the lease is over, some of it for the second time, under the same id.

    \b
    evworker outbox relay -d postgresql://shop@db/shop
    evworker outbox relay --keep 1d --name relay-1
    """  # noqa: D301 - click reads \b
    url = database.named(database_url)
    database.check_installed(url)
    from evworker.broker import Relay
    from evworker.cli.logs import configure_logs

    configure_logs(log_level, log_format)
    relay = Relay(
        url,
        broker_url,
        exchange=exchange,
        name=name,
        batch=batch,
        lease=lease_s,
        keep=keep_s or None,
        dead_after_attempts=dead_after_attempts,
        dead_after=dead_after_s,
    )
    try:
        run_for_long(_work(relay))
    except asyncio.CancelledError:
        raise click.Abort from None


async def _work(relay: Relay) -> None:
    import structlog

    log = structlog.get_logger("evworker.relay")
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    working = asyncio.create_task(relay.run())

    def stop() -> None:
        if asked_to_stop.is_set():
            working.cancel()
        asked_to_stop.set()
        relay.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    announcing = asyncio.create_task(_announce(relay, log))
    try:
        await working
    finally:
        announcing.cancel()
    counts = relay.counts
    log.info("stopped", sent=counts.sent, refused=counts.refused, dead=counts.dead)


async def _announce(relay: Relay, log: Any) -> None:
    await relay.ready.wait()
    log.info("ready", relay=relay.name)
