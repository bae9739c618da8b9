"""Bare aio-pika: a callback that decodes a typed order and acks it. BENCH_UVLOOP=1 runs on uvloop.

python -m benchmarks.peers.aio_pika_app
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.peers.measured import PREFETCH, Assignment, publish, run, watch_for

assignment = Assignment.given()
watch = watch_for(assignment)


class Line(msgspec.Struct):
    sku: str
    quantity: int
    price: Decimal


class Order(msgspec.Struct):
    order_id: str
    customer_id: str
    currency: str
    total: Decimal
    placed_at: str
    lines: list[Line]


async def consume() -> None:
    decoder = msgspec.json.Decoder(Order)
    connection = await aio_pika.connect(assignment.broker_url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(assignment.queue)

        async def callback(message: AbstractIncomingMessage) -> None:
            watch.handled(decoder.decode(message.body).order_id)
            await message.ack()

        await queue.consume(callback)
        await asyncio.Event().wait()


async def send_orders() -> None:
    connection = await aio_pika.connect(assignment.broker_url)
    async with connection:
        channel = await connection.channel()
        exchange = channel.default_exchange
        encode = msgspec.json.encode

        async def send(order: dict[str, Any]) -> None:
            message = aio_pika.Message(
                encode(order),
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await exchange.publish(message, routing_key=assignment.queue)

        await publish(assignment, send)


if __name__ == "__main__":
    run(consume() if assignment.case in {"consume", "latency"} else send_orders())
