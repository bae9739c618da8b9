"""FastStream: msgspec, prefetch 200, no log of each message, or with BENCH_DEFAULTS=1 as it comes.

    python -m faststream run benchmarks.peers.faststream_app:app
    python -m benchmarks.peers.faststream_app

Its default is messages that are not persistent, which nobody else measures; they are persistent
here. uvloop it takes by itself where it is installed.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.peers.measured import PREFETCH, Assignment, publish, run, watch_for

assignment = Assignment.given()
watch = watch_for(assignment)
queue = RabbitQueue(assignment.queue, durable=True, queue_type=QueueType(assignment.queue_type))

if assignment.is_tuned:
    import msgspec
    from fast_depends.msgspec import MsgSpecSerializer

    class Line(msgspec.Struct):
        sku: str
        quantity: int
        price: Decimal

    class Order(msgspec.Struct):
        order_id: str
        customer_id: str
        currency: str
        total: Decimal
        placed_at: datetime
        lines: list[Line]

    broker = RabbitBroker(
        assignment.broker_url,
        logger=None,
        serializer=MsgSpecSerializer(),
        default_channel=Channel(prefetch_count=PREFETCH),
    )

    @broker.subscriber(queue)
    async def place(order: Order) -> None:
        watch.handled(order.order_id)

else:
    from pydantic import BaseModel

    class ModelledLine(BaseModel):
        sku: str
        quantity: int
        price: Decimal

    class ModelledOrder(BaseModel):
        order_id: str
        customer_id: str
        currency: str
        total: Decimal
        placed_at: datetime
        lines: list[ModelledLine]

    broker = RabbitBroker(assignment.broker_url)

    @broker.subscriber(queue)
    async def place_modelled(order: ModelledOrder) -> None:
        watch.handled(order.order_id)


app = FastStream(broker)


async def main() -> None:
    async with broker:
        await broker.declare_queue(queue)

        async def send(order: dict[str, Any]) -> None:
            await broker.publish(order, queue, persist=True)

        await publish(assignment, send)


if __name__ == "__main__":
    run(main())
