"""What a message costs the worker by itself: the same frames over and over, from memory.

    python -m benchmarks.canned [--messages 40000] [--rounds 5] [--profile]

The bytes of deliveries go in where a socket would put them, and through tap, feed, handler and
settlement; the bytes of the acks are counted and dropped. There is no broker, no socket and nobody
else at work: what is left is evworker's own CPU, in microseconds a message. The event is that of
`benchmarks.run`, in its envelope; one handler returns at once, the other gives way once.

`--profile` says in which functions that time is spent, for the first of the two; Python's profiler
multiplies it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import pstats
import statistics
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import structlog

from benchmarks.peers.evworker_events import OrderPlaced
from benchmarks.peers.measured import ORDER, PREFETCH
from evworker.broker import BrokerVersion, Envelope
from evworker.broker.fastlane.consuming import TappedDeliveries
from evworker.broker.fastlane.content_header import encode_event_header
from evworker.broker.fastlane.frames import BASIC_DELIVER, BODY, FRAME_END, HEADER, METHOD
from evworker.broker.fastlane.tap import Tap
from evworker.workers import Context, Plugin, Retry, plan_topology
from evworker.workers.feed import Feed, Shared
from evworker.workers.outcome import Counts
from evworker.workers.solitude import Solitude

QUEUE = "bench"
CHANNEL = 1
AT_ONCE = 50
"""How many messages come with one read."""

LARGEST_FRAME = 128 * 1024

Handler = Callable[[OrderPlaced, Context], Awaitable[None]]


class Sink(asyncio.Transport):
    """Where acks go."""

    def write(self, data: Any) -> None:  # whatever can be written
        pass

    def is_closing(self) -> bool:
        return False


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, CHANNEL, len(payload)) + payload + bytes((FRAME_END,))


def short(text: str) -> bytes:
    return len(text).to_bytes(1) + text.encode()


def deliveries(count: int) -> list[bytes]:
    """Reads with AT_ONCE deliveries each; they differ in their tags alone."""
    envelope = Envelope.wrap(msgspec.convert(ORDER, OrderPlaced), source="bench")
    body = envelope.encode()
    header = encode_event_header(envelope, len(body))
    assert header is not None
    content = frame(HEADER, header) + frame(BODY, body)
    begin = struct.pack(">I", BASIC_DELIVER) + short("ctag1.0123456789abcdef0123456789abcdef")
    end = bytes(1) + short(f"{QUEUE}.events") + short(envelope.topic)
    messages = [
        frame(METHOD, begin + tag.to_bytes(8) + end) + content for tag in range(1, count + 1)
    ]
    return [b"".join(messages[at : at + AT_ONCE]) for at in range(0, count, AT_ONCE)]


class Bench:
    """A feed whose tasks wait for deliveries, and a tap to put them into."""

    def __init__(self, handler: Handler) -> None:
        plugin = Plugin("bench")
        declared = plugin.consumer(
            OrderPlaced, queue=QUEUE, concurrency=PREFETCH, prefetch=PREFETCH, retry=Retry()
        )
        declared(handler)
        self.counts = Counts()
        nothing = cast("Any", None)  # neither is asked for by what succeeds
        shared = Shared(
            connection=nothing,
            publisher=nothing,
            inbox=None,
            counts=self.counts,
            take=lambda: True,
            solitude=Solitude(),
        )
        topology = plan_topology([plugin], exchange="bench", version=BrokerVersion(3, 10))
        self.feed = Feed(
            QUEUE, plugin.consumers, topology=topology, states={"bench": None}, shared=shared
        )
        loop = asyncio.get_running_loop()
        self.tap = Tap(asyncio.StreamReader(loop=loop), loop)
        self.tap.connection_made(Sink())
        self.tap.expect_frames(LARGEST_FRAME)
        TappedDeliveries(self.tap, CHANNEL, QUEUE, self.feed._receive)  # noqa: SLF001
        for lane in self.feed._lanes:  # noqa: SLF001 - as `run` has it, without a subscription
            for _ in range(PREFETCH):
                self.feed._spawn(lane.work())  # noqa: SLF001

    async def take(self, reads: list[bytes]) -> None:
        """Take them one after the other, each when the one before is settled."""
        await asyncio.sleep(0)  # until the tasks wait
        for number, read in enumerate(reads, start=1):
            self.tap.data_received(read)
            while self.counts.handled < number * AT_ONCE:
                await asyncio.sleep(0)
        self.feed._traffic.closing = True  # noqa: SLF001 - its tasks may be cancelled from now on


async def handle(event: OrderPlaced, ctx: Context) -> None:
    """Return at once."""


async def handle_later(event: OrderPlaced, ctx: Context) -> None:
    await asyncio.sleep(0)


async def measure(handler: Handler, messages: int, profile: cProfile.Profile | None) -> float:
    """Microseconds of CPU a message."""
    reads = deliveries(messages)
    bench = Bench(handler)
    if profile is not None:
        profile.enable()
    began = time.process_time()
    await bench.take(reads)
    seconds = time.process_time() - began
    if profile is not None:
        profile.disable()
    return 1e6 * seconds / messages


def main() -> None:
    parser = argparse.ArgumentParser(description="what a message costs the worker by itself")
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    messages = max(1, arguments.messages // AT_ONCE) * AT_ONCE
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        cache_logger_on_first_use=True,
    )
    if arguments.profile:
        profile = cProfile.Profile()
        asyncio.run(measure(handle, messages, profile))
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    handlers: dict[str, Handler] = {"returns at once": handle, "gives way once": handle_later}
    taken: dict[str, list[float]] = {name: [] for name in handlers}
    for name, _ in itertools.product(handlers, range(arguments.rounds)):
        taken[name].append(asyncio.run(measure(handlers[name], messages, None)))
    print(f"{messages:,} messages, {arguments.rounds} rounds, Python {sys.version.split()[0]}")
    for name, costs in taken.items():
        spread = f"({min(costs):.1f}-{max(costs):.1f})"
        print(f"a handler that {name:16} {statistics.median(costs):5.1f} us of CPU {spread}")


if __name__ == "__main__":
    main()
