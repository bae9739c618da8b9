"""evworker: typed events in their full envelopes, through `evworker run` and `Publisher`.

    evworker run benchmarks.peers.evworker_app:plugin
    python -m benchmarks.peers.evworker_app

BENCH_SUSPENDS=1 has the handler give way once, as one does that awaits something.
BENCH_MANY=1 publishes by `Publisher.publish_many`.
BENCH_PLAIN=1 makes its classic queue one without priorities, which evworker itself never declares.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from benchmarks.peers.evworker_events import OrderPlaced
from benchmarks.peers.measured import ORDER, PREFETCH, Assignment, publish, run, watch_for
from evworker.broker import BrokerVersion, Connection, Publisher, apply_topology, topology
from evworker.workers import Context, Plugin, Retry, plan_topology

MANY = 5_000
"""How many events are handed to `publish_many` at once."""


assignment = Assignment.given()
watch = watch_for(assignment)
plugin = Plugin("bench")
exchange = f"{assignment.queue}.events"

if os.environ.get("BENCH_PLAIN") == "1":
    arguments_of = topology._work_arguments  # noqa: SLF001 - there is no option for it

    def plain_arguments(
        name: str, priorities: int | None, version: BrokerVersion
    ) -> dict[str, str | int]:
        arguments = arguments_of(name, priorities, version)
        arguments.pop("x-max-priority", None)
        return arguments

    topology._work_arguments = plain_arguments  # noqa: SLF001

declared = plugin.consumer(
    OrderPlaced,
    queue=assignment.queue,
    concurrency=PREFETCH,
    prefetch=PREFETCH,
    retry=Retry(),  # without delays it has no retry queues to be removed afterwards
    priorities=2 if assignment.queue_type == "classic" else None,  # they make it a classic queue
)

if os.environ.get("BENCH_SUSPENDS") == "1":

    @declared
    async def handle_later(event: OrderPlaced, ctx: Context) -> None:
        await asyncio.sleep(0)
        watch.handled(event.order_id)

else:

    @declared
    async def handle(event: OrderPlaced, ctx: Context) -> None:
        watch.handled(event.order_id)


async def main() -> None:
    url = assignment.broker_url
    event = msgspec.convert(ORDER, OrderPlaced)
    async with Connection(url, name="bench") as connection:
        planned = plan_topology([plugin], exchange=exchange, version=connection.version)
        await apply_topology(connection, planned)
        async with Publisher(connection, exchange=exchange, timeout_s=60) as publisher:
            if os.environ.get("BENCH_MANY") == "1":
                await publish_many(publisher, event)
                return

            async def send(order: dict[str, Any]) -> None:
                paced = assignment.case == "pace"
                await publisher.publish(msgspec.convert(order, OrderPlaced) if paced else event)

            await publish(assignment, send)


async def publish_many(publisher: Any, event: OrderPlaced) -> None:
    watch.begin()
    for sent in range(0, assignment.messages, MANY):
        await publisher.publish_many([event] * min(MANY, assignment.messages - sent))
    watch.end()


if __name__ == "__main__":
    run(main())
