"""Taskiq on taskiq-aio-pika: prefetch 200, or with BENCH_DEFAULTS=1 as it comes.

    python -m taskiq worker benchmarks.peers.taskiq_app:broker
    python -m benchmarks.peers.taskiq_app

uvloop it takes by itself where it is installed.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from benchmarks.peers.measured import PREFETCH, Assignment, publish, run, watch_for

assignment = Assignment.given()
watch = watch_for(assignment)
broker = AioPikaBroker(
    assignment.broker_url,
    exchange=Exchange(name=assignment.queue),
    task_queues=[Queue(name=assignment.queue, type=QueueType(assignment.queue_type))],
    dead_letter_queue=Queue(name=f"{assignment.queue}.dead"),
    **({"qos": PREFETCH} if assignment.is_tuned else {}),
)


class Line(BaseModel):
    sku: str
    quantity: int
    price: Decimal


class Order(BaseModel):
    order_id: str
    customer_id: str
    currency: str
    total: Decimal
    placed_at: datetime
    lines: list[Line]


@broker.task(task_name="bench.place")
async def place(order: Order) -> None:
    watch.handled(order.order_id)


async def main() -> None:
    await broker.startup()

    async def send(order: dict[str, Any]) -> None:
        await place.kiq(order)

    await publish(assignment, send)
    await broker.shutdown()


if __name__ == "__main__":
    run(main())
