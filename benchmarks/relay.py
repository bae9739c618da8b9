"""The relay on PostgreSQL, side by side with a bare publisher: the same events, interleaved rounds.

    python benchmarks/relay.py [--events 10000] [--pending 1000000] [--rounds 3] [--commits 300]
        [--queue-type quorum|classic]

`publisher` is `Publisher.publish` with its confirms awaited, by 200 tasks at once, and no database;
`publish_many` is that.
`relay` is one relay that empties an outbox of so many events. `relay, backlog` is the same relay
while `--pending` events wait: it is stopped once it has sent `--events` of them. `by hand` is what
one writes without a relay: on asyncpg, 500 rows at a time are selected FOR UPDATE SKIP LOCKED,
published by aio-pika, and deleted once all are confirmed, in one transaction. All go to the same
kind of queue. Each measurement is a process of its own, on the event loop of `evworker outbox
relay`.

The latency is that of an idle relay: from before a commit to the broker's confirm as the relay has
seen it, and to the beginning of the publish.

Ratios of one run can be compared, absolute rates of different runs can't.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers.measured import session_usage, tell
from evworker.broker import Connection, Envelope, Event, Publisher
from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.outbox.outbox import Outbox
from evworker.broker.outbox.relay import Relay
from evworker.cli.event_loop import run_for_long
from tests.databases import own_database

URL = os.environ.get("EVWORKER_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")
AT_ONCE = 200
SIDES = ("publisher", "publish_many", "relay", "relay, backlog", "by hand")
BATCH = 500

FILL = """
INSERT INTO evworker_outbox (event_id, topic, body, created_at, state, attempts)
SELECT substr(:id, 1, 28) || lpad(to_hex(n), 8, '0'), :topic, :body, now(), 'ready', 0
FROM generate_series(1, :events) AS n
"""

SELECT = """
SELECT seq, event_id, topic, body FROM evworker_outbox
ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED
"""
DELETE = "DELETE FROM evworker_outbox WHERE seq = ANY($1)"


class OrderPlaced(Event, topic="orders.placed", version=2):
    """About 300 bytes in its envelope, like most events."""

    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]


EVENT = OrderPlaced(
    order_id="536365", customer_id="17850", total=Decimal("139.12"), lines=["85123A", "71053"]
)


@asynccontextmanager
async def bench_exchange(url: str, queue_type: str) -> AsyncIterator[str]:
    """An exchange with one queue bound to it."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    async with await aio_pika.connect(url) as plain:
        channel = await plain.channel()
        async with Publisher(url, exchange=name):
            pass  # it declares the exchange
        queue = await channel.declare_queue(
            name, durable=True, arguments={"x-queue-type": queue_type}
        )
        await queue.bind(name, "#")
        try:
            yield name
        finally:
            for one in (name, f"{name}.unrouted"):
                await channel.queue_delete(one)
                await channel.exchange_delete(one)


class Watch:
    """What it took since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def result(self, messages: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self._began[0]
        cpu_s = time.process_time() - self._began[1]
        return {"messages": messages, "seconds": seconds, "cpu_s": cpu_s}


async def measure_publisher(url: str, queue_type: str, events: int) -> dict[str, Any]:
    async with (
        bench_exchange(url, queue_type) as exchange,
        Publisher(url, exchange=exchange) as publisher,
    ):
        numbers = iter(range(events))

        async def lane() -> None:
            for _ in numbers:
                await publisher.publish(EVENT)

        watch = Watch()
        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
        return watch.result(events)


async def measure_publish_many(url: str, queue_type: str, events: int) -> dict[str, Any]:
    async with (
        bench_exchange(url, queue_type) as exchange,
        Publisher(url, exchange=exchange) as publisher,
    ):
        watch = Watch()
        await publisher.publish_many([EVENT] * events)
        return watch.result(events)


async def fill(engine: AsyncEngine, pending: int) -> None:
    await make_tables(engine)
    envelope = Envelope.wrap(EVENT, source="bench")
    filled = {"id": envelope.id, "topic": envelope.topic, "body": envelope.encode()}
    async with engine.begin() as connection:
        await connection.execute(text(FILL), filled | {"events": pending})
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM ANALYZE evworker_outbox"))
        await connection.execute(text("CHECKPOINT"))


async def measure_relay(
    url: str, queue_type: str, database: str, events: int, pending: int
) -> dict[str, Any]:
    engine = open_engine(database)
    await fill(engine, pending)
    async with bench_exchange(url, queue_type) as exchange:
        relay = Relay(engine, url, exchange=exchange)
        async with relay:
            watch = Watch()
            running = asyncio.create_task(relay.run())
            while relay.counts.sent < events:
                await asyncio.sleep(0.002)
            result = watch.result(relay.counts.sent)
            relay.stop()
            await running
    await engine.dispose()
    return result


async def measure_by_hand(url: str, queue_type: str, database: str, events: int) -> dict[str, Any]:
    engine = open_engine(database)
    await fill(engine, events)
    await engine.dispose()
    async with bench_exchange(url, queue_type) as name, await aio_pika.connect(url) as plain:
        rows = await asyncpg.connect(database)
        exchange = await (await plain.channel()).get_exchange(name)
        watch = Watch()
        while await publish_batch(rows, exchange):
            pass
        result = watch.result(events)
        await rows.close()
    return result


async def publish_batch(rows: asyncpg.Connection, exchange: aio_pika.abc.AbstractExchange) -> int:
    async with rows.transaction():
        batch = await rows.fetch(SELECT, BATCH)
        messages = (
            aio_pika.Message(
                row["body"],
                message_id=row["event_id"],
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            for row in batch
        )
        topics = (row["topic"] for row in batch)
        await asyncio.gather(*map(exchange.publish, messages, topics))
        await rows.execute(DELETE, [row["seq"] for row in batch])
    return len(batch)


async def measure_latency(
    url: str, queue_type: str, database: str, commits: int
) -> dict[str, list[float]]:
    """Milliseconds from before each commit, to the publish and to the confirm."""
    engine = open_engine(database)
    await make_tables(engine)
    outbox = Outbox(source="bench")
    begun: dict[str, float] = {}
    published: list[float] = []
    confirmed: list[float] = []
    async with (
        bench_exchange(url, queue_type) as exchange,
        Connection(url, name="bench") as connection,
    ):
        relay = Relay(database, connection, exchange=exchange)
        begin = relay._publisher.begin  # noqa: SLF001 - where the relay ends and the broker begins

        def timed(message: Any, timeout_s: float) -> Any:
            began = begun[message.id]
            published.append(time.perf_counter() - began)
            confirm = begin(message, timeout_s)
            confirm.add_done_callback(lambda _: confirmed.append(time.perf_counter() - began))
            return confirm

        relay._publisher.begin = timed  # type: ignore[method-assign]  # noqa: SLF001
        running = asyncio.create_task(relay.run())
        await relay.ready.wait()
        while not relay._wakeup.is_listening:  # noqa: SLF001
            await asyncio.sleep(0.01)
        for number in range(commits):
            async with engine.connect() as session:
                envelope = await outbox.add(session, EVENT)
                begun[envelope.id] = time.perf_counter()
                await session.commit()
            while len(confirmed) <= number:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
        relay.stop()
        await running
    await engine.dispose()
    return {
        "publish": [1000 * seconds for seconds in published],
        "confirm": [1000 * seconds for seconds in confirmed],
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    url, kind, events = arguments.url, arguments.queue_type, arguments.events
    if (measuring := asyncio.current_task()) is not None:
        # By way of what removes its queue and its database.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    if arguments.side == "publisher":
        return await measure_publisher(url, kind, events)
    if arguments.side == "publish_many":
        return await measure_publish_many(url, kind, events)
    with own_database("postgresql", Path(), prefix="bench") as database:
        if arguments.side == "latency":
            return await measure_latency(url, kind, database, arguments.commits)
        if arguments.side == "by hand":
            return await measure_by_hand(url, kind, database, events)
        pending = arguments.pending if arguments.side == "relay, backlog" else events
        return await measure_relay(url, kind, database, events, pending)


def measured_apart(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--url", arguments.url]
    command += ["--queue-type", arguments.queue_type]
    for option in ("events", "pending", "commits"):
        command += [f"--{option}", str(getattr(arguments, option))]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="the relay beside a bare publisher")
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--pending", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commits", type=int, default=300)
    parser.add_argument("--url", default=URL.replace(",", " ").split()[0])
    parser.add_argument("--queue-type", choices=("quorum", "classic"), default="quorum")
    parser.add_argument("--side", choices=(*SIDES, "latency"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("warning"),
            cache_logger_on_first_use=True,
        )
        result = run_for_long(measure(arguments))
        if told := os.environ.get("BENCH_RESULT"):  # by benchmarks.run
            usage = session_usage()
            tell(Path(told), result | {"pss_mib": usage.pss_mib, "processes": usage.processes})
        print(json.dumps(result))
        return
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side, results in rounds.items():
            results.append(measured_apart(side, arguments))
    print(
        f"{arguments.events:,} events, {arguments.rounds} rounds, "
        f"PostgreSQL, {arguments.queue_type} queue"
    )
    rates = {
        side: [result["messages"] / result["seconds"] for result in results]
        for side, results in rounds.items()
    }
    for side, numbers in rates.items():
        spread = f"({min(numbers):,.0f}-{max(numbers):,.0f})"
        print(f"{side:16} {statistics.median(numbers):8,.0f} events/s {spread}")
    for name, ours, beside in (
        ("relay / publisher", "relay", "publisher"),
        ("relay / publish_many", "relay", "publish_many"),
        (f"{arguments.pending:,} pending / {arguments.events:,}", "relay, backlog", "relay"),
    ):
        ratios = [a / b for a, b in zip(rates[ours], rates[beside], strict=True)]
        spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name}: {statistics.median(ratios):.2f} {spread}")
    latency = measured_apart("latency", arguments)
    for what in ("publish", "confirm"):
        cuts = statistics.quantiles(latency[what], n=100)
        print(f"commit to {what}, idle: median {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms")


if __name__ == "__main__":
    main()
