"""What evworker weighs: how fast the command answers, a worker is there, and what it holds.

    python benchmarks/footprint.py [--messages 1000000]

- `evworker --help`: whole processes, median of ten.
- start: from the start of `evworker run` with ten consumers on a declared topology until each of
  them has handled an event that was waiting.
- memory: resident size of one `evworker run` while it handles the messages, published a little
  ahead of it, from this process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evworker.broker import Connection, Event, Publisher, apply_topology, count_messages
from evworker.workers import Context, Plugin, plan_topology

URL = os.environ.get("EVWORKER_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")
COMMAND = Path(sys.executable).with_name("evworker")
NAME = os.environ.setdefault("BENCH_NAME", f"bench-{uuid.uuid4().hex[:8]}")
HANDLED = os.environ.get("BENCH_HANDLED")

AHEAD = 20_000
BATCH = 500


class Ticked(Event, topic="bench.ticked"):
    number: int


plugin = Plugin("bench")


def declare(number: int) -> None:
    @plugin.consumer(Ticked, name=f"bench.c{number}", queue=f"{NAME}.q{number}", prefetch=100)
    async def handle(event: Ticked, ctx: Context) -> None:
        if HANDLED is not None and event.number == 0:
            Path(HANDLED, str(number)).touch()


for index in range(10):
    declare(index)


@contextmanager
def working(url: str, folder: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "BENCH_NAME": NAME,
        "BENCH_HANDLED": folder,
        "EVWORKER_BROKER_URL": url,
        "EVWORKER_EXCHANGE": f"{NAME}.events",
    }
    command = [str(COMMAND), "run", "benchmarks.footprint:plugin", "-l", "warning", *options]
    worker = subprocess.Popen(command, env=environment)
    try:
        yield worker
    finally:
        worker.terminate()
        worker.wait(30)


def measure_help() -> None:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    print(f"evworker --help: {statistics.median(times):.3f} s (max {max(times):.3f})")


async def measure_start(url: str, publisher: Publisher) -> None:
    times = []
    for _ in range(5):
        await publisher.publish(Ticked(number=0))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            with working(url, folder):
                while len(list(Path(folder).iterdir())) < 10:
                    await asyncio.sleep(0.005)
                times.append(time.perf_counter() - started)
    slowest = max(times)
    print(f"start to event, ten consumers: {statistics.median(times):.2f} s (max {slowest:.2f})")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure_memory(
    url: str, connection: Connection, publisher: Publisher, messages: int
) -> None:
    queue = f"{NAME}.q0"
    sizes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        working(url, folder, "--queue", queue) as worker,
    ):
        started = time.perf_counter()
        for sent in range(BATCH, messages + 1, BATCH):
            await asyncio.gather(*(publisher.publish(Ticked(number=1)) for _ in range(BATCH)))
            while (await count_messages(connection, queue) or 0) > AHEAD:
                await asyncio.sleep(0.1)
            if sent % max(messages // 10, BATCH) == 0:
                sizes.append(resident_mib(worker.pid))
                print(f"  {sent:>9,} messages: {sizes[-1]:.1f} MiB", flush=True)
        while await count_messages(connection, queue):
            await asyncio.sleep(0.1)
        seconds = time.perf_counter() - started
    print(f"{messages:,} messages in {seconds:.0f} s: {sizes[0]:.1f} to {sizes[-1]:.1f} MiB")


async def measure(url: str, messages: int) -> None:
    measure_help()
    async with Connection(url, name="benchmark") as connection:
        topology = plan_topology([plugin], exchange=f"{NAME}.events", version=connection.version)
        await apply_topology(connection, topology)
        try:
            async with Publisher(connection, exchange=f"{NAME}.events", timeout_s=60) as publisher:
                await measure_start(url, publisher)
                # From here on events go to one queue only.
                channel = await connection.channel()
                for number in range(1, 10):
                    await channel.queue_unbind(
                        f"{NAME}.q{number}", f"{NAME}.events", "bench.ticked"
                    )
                await measure_memory(url, connection, publisher, messages)
        finally:
            channel = await connection.channel()
            for queue in topology.queues:
                await channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                await channel.exchange_delete(exchange.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="start-up time and memory of evworker")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--url", default=URL.replace(",", " ").split()[0])
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.url, arguments.messages))


if __name__ == "__main__":
    main()
