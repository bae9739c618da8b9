"""A transactional consumer, side by side with its transaction written by hand: interleaved rounds.

    python benchmarks/transactional.py [--messages 5000] [--rounds 5] [--concurrency 20]

Each measurement is a process of its own with a database of its own, on PostgreSQL: it publishes the
messages, then consumes them, and counts from the first to the last one acked. By hand is bare
aio-pika with `concurrency` callbacks at once, each of which decodes the order's id, takes a
connection of SQLAlchemy's pool, inserts the inbox row and the business row with Core, commits, and
acks. evworker does the same in a consumer with `transactional=True`, whose handler is one INSERT
through `ctx.session`; it decodes the envelope and the typed event beside that, keeps a timeout,
looks before the commit whether the transaction is whole, judges the outcome and settles it.

The bar is half the rate. Ratios of one run can be compared, absolute rates of different runs can't.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from decimal import Decimal
from pathlib import Path

import aio_pika
import msgspec
import structlog
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evworker.broker import Connection, Event, Publisher, apply_topology
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.database.tables import inbox, utc_now
from evworker.workers import Context, Plugin, Worker, plan_topology
from tests.databases import own_database

URL = os.environ.get("EVWORKER_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")

metadata = MetaData()
payments = Table(
    "payments",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("order_id", String(64), nullable=False),
    Column("amount", String(32), nullable=False),
)
pay = insert(payments)
remember = postgresql.insert(inbox).values(handled_at=utc_now()).on_conflict_do_nothing()


class OrderPlaced(Event, topic="orders.placed", version=2):
    """About 300 bytes in its envelope, like most events."""

    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]


class Order(msgspec.Struct):
    order_id: str
    total: str


class Document(msgspec.Struct):
    id: str
    data: Order


class Stopwatch:
    """Counts from the first message begun to the last one acked."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.started: tuple[float, float] | None = None
        self.seconds = self.cpu_seconds = 0.0
        self.done = asyncio.Event()

    def begin(self) -> None:
        if self.started is None:
            self.started = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.left -= 1
        if not self.left and self.started is not None:
            self.seconds = time.perf_counter() - self.started[0]
            self.cpu_seconds = time.process_time() - self.started[1]
            self.done.set()


async def consume_by_hand(
    url: str, queue_name: str, engine: AsyncEngine, concurrency: int, watch: Stopwatch
) -> None:
    decoder = msgspec.json.Decoder(Document)
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=concurrency)
        queue = await channel.get_queue(queue_name)

        async def callback(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            watch.begin()
            event = decoder.decode(message.body)
            async with engine.begin() as transaction:
                remembered = await transaction.execute(
                    remember, {"consumer": "bench", "event_id": event.id}
                )
                if remembered.rowcount:
                    await transaction.execute(
                        pay, {"order_id": event.data.order_id, "amount": event.data.total}
                    )
            await message.ack()
            watch.end()

        tag = await queue.consume(callback)
        await watch.done.wait()
        await queue.cancel(tag)


def plugin_for(queue_name: str, concurrency: int, watch: Stopwatch) -> Plugin:
    plugin = Plugin("bench")

    @plugin.consumer(
        OrderPlaced,
        queue=queue_name,
        concurrency=concurrency,
        prefetch=2 * concurrency,
        transactional=True,
    )
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        watch.begin()
        await ctx.session.execute(pay, {"order_id": event.order_id, "amount": str(event.total)})

    return plugin


async def until_acked(worker: Worker, messages: int, watch: Stopwatch) -> None:
    while worker.counts.handled < messages:
        await asyncio.sleep(0.005)
    watch.left = 1
    watch.end()


async def measure(side: str, arguments: argparse.Namespace, database_url: str) -> dict[str, float]:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    messages, concurrency = arguments.messages, arguments.concurrency
    watch = Stopwatch(messages)
    plugin = plugin_for(f"{name}.q", concurrency, watch)
    engine = open_engine(database_url, connections=concurrency + 4)
    await make_tables(engine)
    async with engine.begin() as setup:
        await setup.run_sync(metadata.create_all)
    event = OrderPlaced(
        order_id="536365", customer_id="17850", total=Decimal("139.12"), lines=["85123A", "71053"]
    )
    async with Connection(arguments.url, name="benchmark") as connection:
        topology = plan_topology([plugin], exchange=f"{name}.events", version=connection.version)
        await apply_topology(connection, topology)
        try:
            async with Publisher(connection, exchange=f"{name}.events", timeout_s=60) as publisher:
                for batch in range(0, messages, 1_000):
                    size = min(1_000, messages - batch)
                    await asyncio.gather(*(publisher.publish(event) for _ in range(size)))
            if side == "by hand":
                await consume_by_hand(arguments.url, f"{name}.q", engine, concurrency, watch)
            else:
                worker = Worker(
                    [plugin],
                    arguments.url,
                    exchange=f"{name}.events",
                    database=engine,
                    relay=arguments.relay,
                )
                running = asyncio.create_task(worker.run())
                await until_acked(worker, messages, watch)
                worker.stop()
                await running
        finally:
            channel = await connection.channel()
            for queue in topology.queues:
                await channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                await channel.exchange_delete(exchange.name)
    async with engine.connect() as look:
        for table in (payments, inbox):
            found = await look.scalar(select(func.count()).select_from(table))
            assert found == messages, f"{found} rows in {table.name}"
    await engine.dispose()
    return {"rate": messages / watch.seconds, "cpu_us": watch.cpu_seconds / messages * 1e6}


def measured_apart(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--messages", str(arguments.messages)]
    command += ["--url", arguments.url, "--concurrency", str(arguments.concurrency)]
    command += ["--relay"] * arguments.relay
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="a transactional consumer, and one by hand")
    parser.add_argument("--messages", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--relay", action="store_true", help="have the worker relay beside it")
    parser.add_argument("--url", default=URL.replace(",", " ").split()[0])
    parser.add_argument("--side", choices=("by hand", "evworker"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
        with (
            tempfile.TemporaryDirectory() as folder,
            own_database("postgresql", Path(folder), prefix="bench") as database_url,
        ):
            print(json.dumps(asyncio.run(measure(arguments.side, arguments, database_url))))
        return
    rounds: dict[str, list[dict[str, float]]] = {"by hand": [], "evworker": []}
    for _ in range(arguments.rounds):
        for side, results in rounds.items():
            results.append(measured_apart(side, arguments))
    print(
        f"{arguments.messages:,} messages, {arguments.rounds} rounds, "
        f"{arguments.concurrency} at once, one business INSERT each"
    )
    print(f"{'':10} {'messages/s':>12} {'(min-max)':>18} {'CPU us each':>12}")
    for side, results in rounds.items():
        rates = [result["rate"] for result in results]
        cpu_us = statistics.median(result["cpu_us"] for result in results)
        spread = f"({min(rates):,.0f}-{max(rates):,.0f})"
        print(f"{side:10} {statistics.median(rates):12,.0f} {spread:>18} {cpu_us:12.0f}")
    pairs = zip(rounds["evworker"], rounds["by hand"], strict=True)
    ratios = [ours["rate"] / by_hand["rate"] for ours, by_hand in pairs]
    spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"evworker / by hand: {statistics.median(ratios):.2f} {spread}")


if __name__ == "__main__":
    main()
