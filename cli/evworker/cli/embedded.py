"""`--embedded`: a broker in the verb's own process, and a database beside it, for a first try.

Both are gone when the verb ends; that is said on every start, whatever the log level.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from evworker.cli import database
from evworker.cli.failures import BrokerFailedError, say

if TYPE_CHECKING:
    from evworker.cli.logs import LogFormat
    from evworker.workers import Plugin

DEFAULT_PORT = 5676  # 5672 is RabbitMQ's, and the next ones are where people put a second one

INSTALL_SQLITE = "pip install 'evworker[sqlite]'"

_NOT_FOR_PRODUCTION = (
    "an embedded broker: it keeps everything in memory, nothing when this worker ends, "
    "and is not for production"
)
_ITS_DATABASE = "beside it is a SQLite database for outbox and inbox, which is removed with it"
_NO_DATABASE = (
    f"no database, so no outbox and no transactional consumers: {INSTALL_SQLITE} brings one"
)
_FORGETS_THE_OUTBOX = "what it relays from the outbox of your database is forgotten with it"

# Who types wants what is typed; the environment and the file may be there for other days.
_MOST_DELIBERATE_FIRST = (
    ParameterSource.COMMANDLINE,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)


def is_meant(embedded: bool) -> bool:
    """Whether `--embedded` counts; raises UsageError where that is not clear.

    It goes before a broker that the environment or the settings name, as any option of the command
    line does.
    """
    ctx = click.get_current_context()
    asked, broker, port = (
        _MOST_DELIBERATE_FIRST.index(ctx.get_parameter_source(name) or ParameterSource.DEFAULT)
        for name in ("embedded", "broker_url", "embedded_port")
    )
    if embedded and asked == broker:
        raise click.UsageError(
            "--embedded brings a broker of its own, and --broker-url names another; leave one out"
        )
    if port == 0 and not embedded:
        raise click.UsageError("--embedded-port goes with --embedded")
    return embedded and asked < broker


@dataclass(frozen=True, slots=True)
class Embedded:
    """A broker on a port of this machine, and perhaps a database that lives as long."""

    port: int
    own_database: str | None
    """The URL of a database that goes with the broker; None where the user's is taken, or none."""
    users_database: str | None

    @property
    def database_url(self) -> str | None:
        return self.users_database or self.own_database

    @property
    def broker_url(self) -> str:
        return url_at(self.port)

    @asynccontextmanager
    async def running(self, log_format: LogFormat | None) -> AsyncIterator[None]:
        """The broker at work; raises BrokerFailedError if it can't have its port."""
        from evworker.broker.embedded import EmbeddedBroker

        broker = EmbeddedBroker(port=self.port)
        try:
            await broker.start()
        except OSError as error:
            raise BrokerFailedError(self._no_port(error)) from error
        try:
            if self.own_database:
                await make_tables(self.own_database)
            self._announce(log_format)
            yield
        finally:
            await broker.close()

    def _no_port(self, error: OSError) -> str:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return (
            f"the embedded broker can't listen on 127.0.0.1:{self.port}: {reason}; choose a port "
            f"with --embedded-port. If another worker has its embedded broker there, this one "
            f"can join it: --broker-url {self.broker_url} instead of --embedded"
        )

    def _announce(self, log_format: LogFormat | None) -> None:
        from evworker.cli.logs import announce, default_format

        remarks = [_NOT_FOR_PRODUCTION]
        if self.own_database:
            remarks.append(_ITS_DATABASE)
        else:
            remarks.append(_FORGETS_THE_OUTBOX if self.users_database else _NO_DATABASE)
        urls = {"broker_url": self.broker_url, "database_url": self.own_database}
        urls = {name: url for name, url in urls.items() if url}
        if (log_format or default_format(sys.stderr)) == "json":
            announce("evworker.embedded", "; ".join(remarks), **urls)
            return
        for remark in remarks:
            say(f"{remark[0].upper()}{remark[1:]}.")
        say("To reach it from another terminal:\n")
        for name, url in urls.items():
            say(f"    export EVWORKER_{name.upper()}={url}")
        say("")


@contextmanager
def embedded(
    port: int, users_database: str | None, plugins: Iterable[Plugin], *, relayed: bool
) -> Iterator[Embedded]:
    """A broker to come, and where no database is named one of SQLite, if that is installed.

    Raises UsageError if it is not, and `relayed`, or transactional consumers, can't do without.
    """
    if users_database:
        yield Embedded(port, None, users_database)
        return
    needed = relayed or any(one.transactional for plugin in plugins for one in plugin.consumers)
    if not has_sqlite():
        if needed:
            raise click.UsageError(
                "the outbox and transactional consumers need a database: "
                f"{INSTALL_SQLITE} brings one without a server, and -d/--database-url names yours"
            )
        yield Embedded(port, None, None)
        return
    with own_database() as url:
        yield Embedded(port, url, None)


def url_at(port: int) -> str:
    """The URL of an embedded broker on this machine, where guest may log in."""
    return f"amqp://127.0.0.1:{port}"


def has_sqlite() -> bool:
    """Whether the extra is installed."""
    return all(find_spec(module) for module in ("sqlalchemy", "aiosqlite"))


@contextmanager
def own_database() -> Iterator[str]:
    """The URL of a database in a folder of its own, which is removed at the end."""
    with TemporaryDirectory(prefix="evworker-", ignore_cleanup_errors=True) as folder:
        yield f"sqlite:///{Path(folder) / 'evworker.db'}"


async def make_tables(url: str) -> None:
    """The tables of outbox and inbox, in such a database."""
    async with database.opened(url) as engine:
        from evworker.broker.database import schema

        await schema.make_tables(engine)
