"""`evworker run`: load plugins and feed them until told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, NoReturn

import click

from evworker.cli import database, options
from evworker.cli import embedded as brought
from evworker.cli.event_loop import run_for_long
from evworker.cli.failures import FOUND_SOMETHING
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.cli.logs import LogFormat
    from evworker.workers import Worker

COUNT = click.IntRange(min=1)


@click.command(cls=Verb)
@click.argument(
    "plugins",
    nargs=-1,
    metavar="[PLUGINS]...",
    type=options.comma_list,
    callback=options.flatten,
)
@options.app("The same as PLUGINS.")
@options.broker_url
@click.option(
    "--embedded",
    is_flag=True,
    help="Bring a broker, in this process and in memory, for a first try: it keeps nothing. With "
    "SQLite beside it, unless a database is named.",
)
@click.option(
    "--embedded-port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    default=brought.DEFAULT_PORT,
    show_default=True,
    help="Where the embedded broker listens on this machine.",
)
@options.exchange
@click.option(
    "-Q",
    "--queue",
    "queues",
    metavar="NAME",
    type=options.comma_list,
    multiple=True,
    callback=options.flatten,
    help="Consume from these queues only. Repeat it, or use commas.",
)
@click.option(
    "-X",
    "--exclude-queue",
    "exclude_queues",
    metavar="NAME",
    type=options.comma_list,
    multiple=True,
    callback=options.flatten,
    help="Consume from all queues but these. Repeat it, or use commas.",
)
@click.option(
    "-c",
    "--concurrency",
    type=COUNT,
    metavar="N",
    help="How many events each consumer handles at once, instead of what it says itself.",
)
@click.option(
    "--prefetch",
    type=COUNT,
    metavar="N",
    help="How many events the broker hands each consumer ahead, instead of what it says itself.",
)
@click.option("--burst", is_flag=True, help="Stop once all queues, retries included, are empty.")
@click.option("--max-events", type=COUNT, metavar="N", help="Stop after so many attempts.")
@click.option(
    "--shutdown-timeout",
    "shutdown_timeout_s",
    type=options.seconds,
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="How long running handlers may take to end after SIGTERM or SIGINT.",
)
@options.database_url
@click.option(
    "--relay/--no-relay",
    "with_relay",
    default=None,
    help="Also publish what waits in the outbox.  [default: yes if there is a database]",
)
@options.inbox_window(
    "How long a transactional consumer remembers what it has applied; an event that comes again "
    "later is applied again."
)
@options.logging
def run(  # noqa: PLR0917 - click hands them over by name
    plugins: tuple[str, ...],
    app: tuple[str, ...],
    broker_url: str,
    embedded: bool,
    embedded_port: int,
    exchange: str,
    queues: tuple[str, ...],
    exclude_queues: tuple[str, ...],
    concurrency: int | None,
    prefetch: int | None,
    burst: bool,
    max_events: int | None,
    shutdown_timeout_s: float,
    database_url: str | None,
    with_relay: bool | None,
    inbox_window_s: float,
    log_format: LogFormat | None,
    log_level: str,
) -> None:
    """Run plugins: feed their consumers until told to stop.

    PLUGINS are modules, or module:attribute where that is a plugin, several, or a function that
    makes them; without any, those of the installed packages (entry points "evworker.plugins").

    SIGTERM and SIGINT stop it gracefully: no new events, running handlers may end, what has not
    started goes back to its queue. A second signal stops it at once; nothing is lost, what was
    running is delivered again.

    Transactional consumers need a database. With one, the worker also publishes what waits in its
    outbox, unless --no-relay is given.

    With --embedded it needs no server: it brings a broker that other terminals can reach, and tells
    them how. That one is gone when the worker ends, and so is what is in it.

    \b
    evworker run --embedded shop.billing
    evworker run shop.billing shop.notifications
    evworker run shop.billing -Q billing.charge -c 20
    evworker run shop.billing --burst
    """  # noqa: D301 - click reads \b
    brings_broker = brought.is_meant(embedded)
    if database_url:
        database.check_installed(database_url)
    elif with_relay and not brings_broker:
        database.named(database_url)
    from evworker.cli.loading import load
    from evworker.cli.logs import configure_logs
    from evworker.workers import Worker, delivery_log_fields

    configure_logs(log_level, log_format, delivery_log_fields)
    loaded = load(plugins or app, plugins_expected=True)
    with ExitStack() as until_the_end:
        broker = None
        if brings_broker:
            broker = until_the_end.enter_context(
                brought.embedded(
                    embedded_port, database_url, loaded.plugins, relayed=bool(with_relay)
                )
            )
            broker_url, database_url = broker.broker_url, broker.database_url
        worker = Worker(
            loaded.plugins,
            broker_url,
            exchange=exchange,
            queues=queues,
            exclude_queues=exclude_queues,
            concurrency=concurrency,
            prefetch=prefetch,
            burst=burst,
            max_events=max_events,
            shutdown_timeout_s=shutdown_timeout_s,
            database=database_url,
            inbox_window=inbox_window_s,
            relay=with_relay,
        )
        try:
            run_for_long(_work(worker, broker.running(log_format) if broker else nullcontext()))
        finally:
            if worker.abandoned:
                until_the_end.close()
                _leave_threads_behind(worker.abandoned, their_broker_ended=broker is not None)


async def _work(worker: Worker, broker: AbstractAsyncContextManager[None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    async with broker:
        await worker.run()


def _leave_threads_behind(handlers: int, *, their_broker_ended: bool) -> NoReturn:
    """End the process although threads run: Python can't stop them, and would wait for them."""
    import structlog

    structlog.get_logger("evworker.run").warning(
        "left plain-function handlers running; their events are gone with the embedded broker"
        if their_broker_ended
        else "left plain-function handlers running; the broker delivers their events again",
        handlers=handlers,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FOUND_SOMETHING)
