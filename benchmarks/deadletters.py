"""Dead letters in bulk, by the command: how long each verb takes, and what it holds in memory.

    python benchmarks/deadletters.py [--count 100000] [--rounds 3] [--broker-url amqp://...]

A dead-letter queue is filled with letters of ten kinds: events of about 300 bytes in full
envelopes, with a traceback of 2 KB. They are looked at, one kind is replayed, one letter is edited,
another kind is purged, the rest is purged; then all of them are imported again, and replayed.

Each step is a process of its own, the real `evworker`, over AMQP alone. Its time is from its start
to its end. Its memory is the peak of its resident size, as the kernel tells it. After each step it
is checked which letters are where; a sum that is wrong ends the benchmark with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

from aiormq import spec

from evworker.broker import (
    Connection,
    Envelope,
    Event,
    Failure,
    apply_topology,
    count_messages,
    dead_letter_queue,
    read_dead_letters,
)
from evworker.broker.deadletters.putting import putting
from evworker.broker.topology import queue_topology

URL = os.environ.get("EVWORKER_TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672/")
COMMAND = Path(sys.executable).with_name("evworker")

KINDS = 10
REPLAYED, PURGED = 3, 7
FIRST_FAILURE = datetime(2026, 11, 23, 12, tzinfo=UTC)
TRACEBACK = "".join(
    f'  File "/srv/shop/billing/step_{step:02}.py", line {step + 11}, in charge_step_{step:02}\n'
    f"    return await self.next.charge(order, card=card, attempt=attempt)\n"
    for step in range(14)
)
LETTER_BYTES = 2_000

# Runs a command, and tells what it cost. The kernel counts into a process's peak what its parent
# held when it was started; so the parent of what is measured is this small one.
MEASURED = """
import os, sys, time
started = time.perf_counter()
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(process, 0)
seconds, cpu_s = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
print(seconds, cpu_s, usage.ru_maxrss / 1024, file=open(int(sys.argv[1]), "w"))
sys.exit(os.waitstatus_to_exitcode(status))
"""

# What the broker counts follows acks in its own time.
SETTLED_S = 60.0


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: str
    customer_id: str
    total: float
    lines: list[str]


class Cost(NamedTuple):
    """What one step took."""

    letters: int
    seconds: float
    cpu_s: float
    mib: float


class WrongSumError(Exception):
    """Letters are not where they ought to be."""


def id_of(number: int) -> str:
    return f"019ab000-0000-7000-8000-{number:012d}"


def letter(number: int) -> tuple[bytes, spec.Basic.Properties]:
    event = OrderPlaced(
        order_id=f"{number}", customer_id="17850", total=139.12, lines=["85123A", "71053", "84406B"]
    )
    failed_at = FIRST_FAILURE + timedelta(milliseconds=number)
    envelope = Envelope.wrap(event, source="shop", id=id_of(number), time=FIRST_FAILURE)
    kind = number % KINDS
    failure = Failure(
        reason="failed",
        error_type=f"shop.billing.Kind{kind}Error",
        error_message=f"the card of order {number} was declined",
        traceback=f"{TRACEBACK[-LETTER_BYTES:]}shop.billing.Kind{kind}Error: {number}",
        attempts=5,
        first_failed_at=FIRST_FAILURE,
        failed_at=failed_at,
        consumer="billing.charge",
        host="worker-7",
        origin_exchange="events",
        origin_routing_key=envelope.topic,
        frame=f"shop.billing:charge_{kind}",
    )
    properties = spec.Basic.Properties(
        content_type="application/cloudevents+json",
        headers=failure.to_headers(),
        delivery_mode=2,
        message_id=envelope.id,
        correlation_id=envelope.correlation_id,
        timestamp=envelope.time,
        message_type=envelope.topic,
        app_id=envelope.source,
    )
    return envelope.encode(), properties


class Bench:
    """One dead-letter queue, and what each step on it took."""

    def __init__(self, connection: Connection, url: str, count: int, folder: Path) -> None:
        self.connection = connection
        self.count = count
        self.folder = folder
        self.queue = f"bench-{uuid.uuid4().hex[:8]}"
        self.letters = dead_letter_queue(self.queue)
        self.rows: dict[str, Cost] = {}
        self._environment = {**os.environ, "EVWORKER_BROKER_URL": url}

    async def run(self) -> None:
        topology = queue_topology(
            self.queue,
            exchange=f"{self.queue}.events",
            patterns=[],
            delays_s=[],
            priorities=None,
            version=self.connection.version,
        )
        topology = replace(topology, exchanges=(), bindings=())
        try:
            await apply_topology(self.connection, topology)
            confirmed: list[int] = []
            async with putting(self.connection, self.letters, confirmed.append) as filling:
                for number in range(self.count):
                    await filling.put(*letter(number), number)
            check("filled", len(confirmed), self.count)
            await self.look()
            await self.repair()
            await self.bring_back()
        finally:
            channel = await self.connection.channel()
            for queue in topology.queues:
                await channel.queue_delete(queue.name)
            await channel.close()

    async def look(self) -> None:
        of_each = self.count // KINDS
        (listed,) = await self.step("list", self.count, "list", "-Q", self.queue, "--json")
        check("listed", listed["messages"], self.count)
        check("reasons", [one["count"] for one in listed["reasons"]], [of_each] * KINDS)
        groups = await self.step("groups", self.count, "groups", self.queue, "--json")
        check("groups", [group["count"] for group in groups], [of_each] * KINDS)
        self.groups = {group["error_type"]: group["group"] for group in groups}
        check("kinds", len(self.groups), KINDS)
        shown = await self.step(
            "show --limit 20", 20, "show", self.queue, "--limit", "20", "--json"
        )
        check("shown", [one["id"] for one in shown], list(map(id_of, range(20))))
        last = id_of(self.count - 1)
        shown = await self.step(
            "show --id (the last)", self.count, "show", self.queue, "--id", last, "--json"
        )
        check("found", [one["id"] for one in shown], [last])
        exported = await self.step(
            "export", self.count, "export", self.queue, "-o", str(self.file), "--json"
        )
        check("exported", exported["exported"], self.count)
        with self.file.open("rb") as lines:
            check_order("export", (json.loads(line)["id"] for line in lines), range(self.count))
        await self.check_counts(self.count, 0)

    async def repair(self) -> None:
        """One kind is replayed, one letter edited, another kind purged, and then the rest."""
        of_each = self.count // KINDS
        done = await self.step(
            "replay --group", of_each, "replay", self.queue, *self.kind(REPLAYED), "--json"
        )
        check("replayed", (done["waiting"], done["replayed"]), (self.count, of_each))
        await self.check_counts(self.count - of_each, of_each)
        replayed = range(REPLAYED, self.count, KINDS)
        await self.check_letters(self.queue, replayed)

        edited = self.count // 2 + 4
        done = await self.step(
            "edit --set", edited, "edit", self.queue, id_of(edited), "--set", "total=1", "--json"
        )
        check("edited", (done["edit_of"], done["data"]["total"]), (id_of(edited), 1))
        await self.check_counts(self.count - of_each - 1, of_each + 1)

        done = await self.step(
            "purge --group", of_each, "purge", self.queue, *self.kind(PURGED), "--yes", "--json"
        )
        check("purged", (done["matched"], done["removed"]), (of_each, of_each))
        left = [
            number
            for number in range(self.count)
            if number % KINDS not in {REPLAYED, PURGED} and number != edited
        ]
        await self.check_counts(len(left), of_each + 1)
        await self.check_letters(self.letters, left)

        done = await self.step(
            "purge (the rest)", len(left), "purge", self.queue, "--yes", "--json"
        )
        check("purged", (done["matched"], done["removed"]), (len(left), len(left)))
        await self.check_counts(0, of_each + 1)

    async def bring_back(self) -> None:
        there = self.count // KINDS + 1
        done = await self.step("import", self.count, "import", self.queue, str(self.file), "--json")
        check("imported", (done["imported"], done["refused"]), (self.count, 0))
        await self.check_counts(self.count, there)
        await self.check_letters(self.letters, range(self.count))
        done = await self.step("replay (all)", self.count, "replay", self.queue, "--json")
        check("replayed", (done["waiting"], done["replayed"]), (self.count, self.count))
        await self.check_counts(0, there + self.count)
        await self.check_letters(self.queue, range(self.count), after=there)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.queue}.ndjson"

    def kind(self, number: int) -> tuple[str, str]:
        return "--group", self.groups[f"shop.billing.Kind{number}Error"]

    async def step(self, name: str, letters: int, *arguments: str) -> Any:
        """Run the command; returns what it printed, which is JSON."""
        reading, writing = os.pipe()
        with os.fdopen(reading) as cost:
            running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-E", "-c", MEASURED, str(writing)),
                *(str(COMMAND), "dlq", *arguments),
                env=self._environment,
                stdout=PIPE,
                stderr=PIPE,
                pass_fds=[writing],
            )
            os.close(writing)
            printed, said = await running.communicate()
            if running.returncode:
                raise WrongSumError(f"{name}: exit code {running.returncode}\n{said.decode()}")
            self.rows[name] = Cost(letters, *map(float, cost.read().split()))
            print(f"  {name}: {self.rows[name].seconds:.1f} s", file=sys.stderr, flush=True)
        return json.loads(printed)

    async def check_counts(self, letters: int, work: int) -> None:
        """So many are ready in the dead-letter queue, and so many in the work queue."""
        expected, deadline = (letters, work), time.monotonic() + SETTLED_S
        counts = None
        while counts != expected:
            if time.monotonic() > deadline:
                check("letters, and work", counts, expected)
            counts = (
                await count_messages(self.connection, self.letters),
                await count_messages(self.connection, self.queue),
            )

    async def check_letters(self, queue: str, numbers: Iterable[int], *, after: int = 0) -> None:
        """In the queue are exactly these, in this order, after the first so many."""
        expected = map(id_of, numbers)
        async with aclosing(read_dead_letters(self.connection, queue)) as reading:
            async for one in reading:
                if one.position > after:
                    check(f"letter {one.position:,} of {queue}", one.id, next(expected, None))
        check(f"the end of {queue}", next(expected, None), None)


def check(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise WrongSumError(f"{what}: {found!r}, expected {expected!r}")


def check_order(what: str, found: Iterator[str], numbers: Iterable[int]) -> None:
    for number in numbers:
        check(f"{what}, letter {number:,}", next(found, None), id_of(number))
    check(f"{what}, the end", next(found, None), None)


def show(count: int, rounds: list[dict[str, Cost]]) -> None:
    print(f"{count:,} letters of {KINDS} kinds, {len(rounds)} rounds; all sums are right")
    heads = f"{'letters':>9} {'seconds':>8} {'letters/s':>10} {'(min-max)':>15}"
    print(f"{'':22} {heads} {'CPU s':>7} {'peak MiB':>9}")
    for name in rounds[0]:
        costs = [one[name] for one in rounds]
        letters, seconds = costs[0].letters, [cost.seconds for cost in costs]
        spread = f"({letters / max(seconds):,.0f}-{letters / min(seconds):,.0f})"
        median = statistics.median(seconds)
        cpu_s = statistics.median(cost.cpu_s for cost in costs)
        mib = max(cost.mib for cost in costs)
        rates = f"{letters:9,} {median:8.1f} {letters / median:10,.0f} {spread:>15}"
        print(f"{name:22} {rates} {cpu_s:7.1f} {mib:9.0f}")


async def measure(url: str, count: int, rounds: int) -> None:
    body, properties = letter(count - 1)
    traced = len(str((properties.headers or {})["evw-traceback"]))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        async with Connection(url, name="benchmark") as connection:
            print(f"RabbitMQ {connection.version}; bodies of {len(body)} bytes, traces of {traced}")
            for _ in range(rounds):
                bench = Bench(connection, url, count, Path(folder))
                await bench.run()
                bench.file.unlink()
                results.append(bench.rows)
    show(count, results)


def main() -> None:
    parser = argparse.ArgumentParser(description="dead letters in bulk, by the command")
    parser.add_argument("--count", type=int, default=100_000, help="a multiple of 100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--broker-url", default=URL.replace(",", " ").split()[0])
    arguments = parser.parse_args()
    if arguments.count < 100 or arguments.count % 100:
        parser.error("--count has to be a multiple of 100")
    asyncio.run(measure(arguments.broker_url, arguments.count, arguments.rounds))


if __name__ == "__main__":
    main()
