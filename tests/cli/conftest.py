"""The command, and a shop for it to work on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evworker.broker import Connection, Envelope, apply_topology, events_topology
from evworker.broker.topology import queue_topology
from tests.cli.command import Command
from tests.conftest import Cleanup

SHOP = '''
    """A shop whose queues begin with PREFIX."""

    import logging
    import threading

    from evworker.broker import Event
    from evworker.workers import Context, Plugin, Retry


    class CardDeclined(Exception):
        pass


    class OrderPlaced(Event, topic="orders.placed", version=2):
        order_id: str
        total: int = 0


    class Stuck(Event, topic="stuck"):
        pass


    billing = Plugin("billing")


    soon = Retry("20ms", give_up_on=CardDeclined)


    @billing.consumer(OrderPlaced, queue="PREFIX.charge", retry=soon)
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        logging.getLogger("shop").info("charging %s", event.order_id)
        if event.total < 0:
            raise CardDeclined("no \\x1b[31mfunds\\x1b[0m")
        if event.total == 0:
            raise RuntimeError("the bank is away")


    @billing.consumer(Stuck, queue="PREFIX.stuck")
    def wait(event: Stuck, ctx: Context) -> None:
        threading.Event().wait()
'''


@pytest.fixture
def evworker(tmp_path: Path) -> Command:
    return Command(tmp_path)


class Exchange:
    """An exchange of this test's own, and a queue that keeps a copy of all that it gets."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name

    async def published(self) -> list[Envelope]:
        """What came since it was last asked."""
        channel = await self.connection.channel()
        envelopes = []
        while (message := await channel.basic_get(f"{self.name}.copy", no_ack=True)).delivery_tag:
            envelopes.append(
                Envelope.read(message.body, message.header.properties, message.routing_key or "")
            )
        await channel.close()
        return envelopes


@pytest.fixture
async def exchange(
    broker_url: str, unique: str, cleanup: Cleanup, evworker: Command
) -> AsyncIterator[Exchange]:
    """The exchange that the command publishes to; it needs no options for that."""
    cleanup.exchange(unique)
    cleanup.exchange(f"{unique}.unrouted")
    cleanup.queue(f"{unique}.unrouted")
    cleanup.queue(f"{unique}.copy")
    evworker.environment |= {"EVWORKER_BROKER_URL": broker_url, "EVWORKER_EXCHANGE": unique}
    async with Connection(broker_url, name=unique) as connection:
        await apply_topology(connection, events_topology(unique))
        channel = await connection.channel()
        await channel.queue_declare(f"{unique}.copy", durable=True)
        await channel.queue_bind(f"{unique}.copy", unique, "#")
        await channel.close()
        yield Exchange(connection, unique)


@pytest.fixture
def shop(evworker: Command, exchange: Exchange, cleanup: Cleanup) -> str:
    """The prefix of the queues of the module ``shop``, which the command works on."""
    prefix = exchange.name
    evworker.write("shop.py", SHOP.replace("PREFIX", prefix))
    evworker.environment["EVWORKER_APP"] = "shop"
    cleanup.queue(f"{prefix}.charge", retry_delays=("20ms",))
    cleanup.queue(f"{prefix}.stuck", retry_delays=("1s", "5s", "30s", "5m"))
    return prefix


@pytest.fixture
async def charge(exchange: Exchange, shop: str) -> str:
    """The shop's work queue, on the broker with its dead-letter queue, and empty."""
    name = f"{shop}.charge"
    topology = queue_topology(
        name,
        exchange=exchange.name,
        patterns=["orders.placed"],
        delays_s=[0.02],
        priorities=None,
        version=exchange.connection.version,
    )
    await apply_topology(exchange.connection, topology)
    return name
