"""Consuming, side by side with bare aio-pika: the same messages, in interleaved rounds.

    python benchmarks/consume.py [--messages 20000] [--rounds 3] [--queue-type quorum|classic]

Each measurement is a process of its own: it publishes the messages, then consumes them, and counts
from the first to the last one handled. Bare aio-pika is `queue.consume` with an ack in each
callback, and decodes nothing; evworker decodes the envelope and the typed event, makes a context,
keeps a timeout, calls the handler, judges the outcome and settles it. Both have a prefetch of 200.

Ratios of one run can be compared, absolute rates of different runs can't.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import uuid
from decimal import Decimal

import aio_pika
import structlog

from evworker.broker import Connection, Event, Publisher, apply_topology
from evworker.workers import Context, Plugin, Worker, plan_topology

PREFETCH = 200
URL = os.environ.get("EVWORKER_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")


class OrderPlaced(Event, topic="bench.orders.placed", version=2):
    """About 300 bytes in its envelope, like most events."""

    order_id: str
    customer_id: str
    total: Decimal
    lines: list[str]


class Stopwatch:
    """Counts handled messages; done when all of them were."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.started: tuple[float, float] | None = None
        self.seconds = self.cpu_seconds = 0.0
        self.done = asyncio.Event()

    def lap(self) -> None:
        if self.started is None:
            self.started = time.perf_counter(), time.process_time()
        self.left -= 1
        if not self.left:
            self.seconds = time.perf_counter() - self.started[0]
            self.cpu_seconds = time.process_time() - self.started[1]
            self.done.set()


async def consume_bare(url: str, queue_name: str, watch: Stopwatch) -> None:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(queue_name)

        async def callback(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            watch.lap()
            await message.ack()

        tag = await queue.consume(callback)
        await watch.done.wait()
        await queue.cancel(tag)


def plugin_for(queue_name: str, watch: Stopwatch, priorities: int | None) -> Plugin:
    plugin = Plugin("bench")

    @plugin.consumer(
        OrderPlaced,
        queue=queue_name,
        concurrency=PREFETCH,
        prefetch=PREFETCH,
        priorities=priorities,
    )
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        watch.lap()

    return plugin


async def measure(side: str, url: str, messages: int, priorities: int | None) -> dict[str, float]:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    watch = Stopwatch(messages)
    plugin = plugin_for(f"{name}.q", watch, priorities)
    event = OrderPlaced(
        order_id="536365", customer_id="17850", total=Decimal("139.12"), lines=["85123A", "71053"]
    )
    async with Connection(url, name="benchmark") as connection:
        topology = plan_topology([plugin], exchange=f"{name}.events", version=connection.version)
        await apply_topology(connection, topology)
        try:
            async with Publisher(connection, exchange=f"{name}.events", timeout_s=60) as publisher:
                for batch in range(0, messages, 1_000):
                    size = min(1_000, messages - batch)
                    await asyncio.gather(*(publisher.publish(event) for _ in range(size)))
            if side == "aio-pika":
                await consume_bare(url, f"{name}.q", watch)
            else:
                worker = Worker([plugin], url, exchange=f"{name}.events")
                running = asyncio.create_task(worker.run())
                await watch.done.wait()
                worker.stop()
                await running
        finally:
            channel = await connection.channel()
            for queue in topology.queues:
                await channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                await channel.exchange_delete(exchange.name)
    return {
        "rate": messages / watch.seconds,
        "cpu_us": watch.cpu_seconds / messages * 1e6,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured_apart(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--messages", str(arguments.messages)]
    command += ["--url", arguments.url, "--queue-type", arguments.queue_type]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="consume side by side with bare aio-pika")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--url", default=URL.replace(",", " ").split()[0])
    parser.add_argument("--queue-type", choices=("quorum", "classic"), default="quorum")
    parser.add_argument("--side", choices=("aio-pika", "evworker"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger("warning"),
            cache_logger_on_first_use=True,
        )
        priorities = 5 if arguments.queue_type == "classic" else None
        result = asyncio.run(measure(arguments.side, arguments.url, arguments.messages, priorities))
        print(json.dumps(result))
        return
    rounds: dict[str, list[dict[str, float]]] = {"aio-pika": [], "evworker": []}
    for _ in range(arguments.rounds):
        for side, results in rounds.items():
            results.append(measured_apart(side, arguments))
    print(
        f"{arguments.messages:,} messages, {arguments.rounds} rounds, {arguments.queue_type} queue"
    )
    print(f"{'':10} {'messages/s':>12} {'(min-max)':>18} {'CPU us each':>12} {'peak MiB':>9}")
    for side, results in rounds.items():
        rates = [result["rate"] for result in results]
        cpu_us = statistics.median(result["cpu_us"] for result in results)
        rss_mib = statistics.median(result["rss_mib"] for result in results)
        spread = f"({min(rates):,.0f}-{max(rates):,.0f})"
        rate = statistics.median(rates)
        print(f"{side:10} {rate:12,.0f} {spread:>18} {cpu_us:12.0f} {rss_mib:9.0f}")
    pairs = zip(rounds["evworker"], rounds["aio-pika"], strict=True)
    ratios = [ours["rate"] / bare["rate"] for ours, bare in pairs]
    spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"evworker / aio-pika: {statistics.median(ratios):.2f} {spread}")


if __name__ == "__main__":
    main()
