"""`evworker demo`: the whole way of an event, narrated as it happens; no server is needed."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evworker.cli import embedded, interrupts, options
from evworker.cli.failures import BrokerFailedError
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import Connection
    from evworker.cli.demo.narration import Narration

SHOP = "evworker.cli.demo.shop:shop"


@click.command(cls=Verb)
@options.broker_url_or("an embedded one, in this process and in memory")
def demo(broker_url: str | None) -> None:
    """An event's whole way, narrated as it happens. It needs no server.

    A little shop with three plugins: orders are placed, paid and announced; a bank that does not
    answer is asked again, and a declined card becomes a dead letter. Then, in a SQLite database of
    its own, the outbox and the inbox: goods come back, and the money is paid back once. It takes a
    few seconds, in an exchange and queues of its own, which are deleted at the end.
    """
    from evworker.broker import BrokerUnreachableError
    from evworker.cli.logs import configure_logs

    # What would be logged is what the demo tells.
    configure_logs("critical", "console")
    try:
        interrupts.run(_perform(broker_url))
    except BrokerUnreachableError as error:
        raise BrokerFailedError(
            f"{error} Start one with `docker run -p 5672:5672 rabbitmq:4`, name another with "
            "--broker-url, or name none: the demo brings its own"
        ) from error


async def _perform(named_url: str | None) -> None:
    from evworker.broker import Connection
    from evworker.broker.embedded import EmbeddedBroker
    from evworker.cli.demo import nothing_lost
    from evworker.cli.demo.narration import Narration
    from evworker.cli.demo.stage import Stage

    narration = Narration()
    async with AsyncExitStack() as until_the_end:
        broker_url = named_url or (await until_the_end.enter_async_context(EmbeddedBroker())).url
        connection = await until_the_end.enter_async_context(
            Connection(broker_url, name="evworker demo")
        )
        narration.title("evworker demo", _where(connection, is_own=named_url is None))
        stage = Stage(narration, connection, broker_url, f"demo-{os.urandom(3).hex()}")
        await nothing_lost.play(stage)
        if embedded.has_sqlite():
            from evworker.cli.demo import nothing_twice

            await nothing_twice.play(stage)
        else:
            narration.step("With a database, nothing is applied twice either: outbox and inbox.")
            narration.say("They need SQLAlchemy and a driver, which are not installed here. This")
            narration.say(
                "brings those of SQLite, which needs no server; then play the demo again:"
            )
            narration.command(embedded.INSTALL_SQLITE, "the second half of the demo")
    _tell_what_next(narration, stage.prefix, is_own=named_url is None)


def _where(connection: Connection, *, is_own: bool) -> str:
    if is_own:
        return "on an embedded broker: in this process, in memory, gone at the end"
    if connection.version.is_embedded:
        return f"on the embedded broker at {connection.address}, which keeps nothing when it ends"
    return f"RabbitMQ {connection.version} at {connection.address}"


def _tell_what_next(narration: Narration, prefix: str, *, is_own: bool) -> None:
    narration.step(f"The exchange and the queues of {prefix} are deleted. Try it yourself:")
    if shutil.which("evworker") is None:
        bin_folder = Path(sys.executable).parent
        narration.command(f'export PATH="{bin_folder}:$PATH"', "in each terminal, once")
    if is_own:
        narration.command(
            f"evworker run --embedded {SHOP}", "the same shop on a broker in memory, until Ctrl-C"
        )
        narration.command(
            f"export EVWORKER_BROKER_URL={embedded.url_at(embedded.DEFAULT_PORT)}",
            "in another terminal, so that it finds that broker",
        )
        narration.command(f"evworker publish orders.placed '{_AN_ORDER}'", _ITS_FATE)
    else:
        narration.command(f"evworker run {SHOP}", "the same shop, until Ctrl-C")
        narration.command(
            f"evworker publish orders.placed '{_AN_ORDER}'", f"{_ITS_FATE}, from another terminal"
        )
    narration.command("evworker tap", "watch the events go by")
    narration.command("evworker dlq show shop.billing", "what failed, where and why")
    narration.command("evworker --help", "and the other verbs")


_ITS_FATE = "an order that no card will cover"
_AN_ORDER = '{"order": "1", "customer": "you", "total": "1999.00"}'
