"""pika on its event loop, and with BENCH_DEFAULTS=1 by its blocking connection.

python -m benchmarks.peers.pika_app
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pika

from benchmarks.peers.measured import (
    AT_ONCE,
    ORDER,
    PREFETCH,
    Assignment,
    publish_in_threads,
    watch_for,
)

assignment = Assignment.given()
watch = watch_for(assignment)
parameters = pika.URLParameters(assignment.broker_url)
properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)


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


decoder = msgspec.json.Decoder(Order)


def handle(channel: Any, delivery: Any, _properties: Any, body: bytes) -> None:
    watch.handled(decoder.decode(body).order_id)
    channel.basic_ack(delivery.delivery_tag)


def consume_blocking() -> None:
    channel = pika.BlockingConnection(parameters).channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    channel.basic_consume(assignment.queue, handle)
    channel.start_consuming()


def publish_blocking() -> None:
    channel = pika.BlockingConnection(parameters).channel()
    channel.confirm_delivery()

    def send(order: dict[str, Any]) -> None:
        channel.basic_publish("", assignment.queue, msgspec.json.encode(order), properties)

    publish_in_threads(assignment, send, threads=1)  # a connection of pika's has one thread


def consume(channel: Any) -> None:
    channel.basic_qos(prefetch_count=PREFETCH)
    channel.basic_consume(assignment.queue, handle)


class Window:
    """Keeps AT_ONCE publishes on their way to their confirms."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._sent = self._confirmed = 0

    def start(self, _answer: Any) -> None:
        watch.begin()
        self.send()

    def send(self) -> None:
        last = min(self._confirmed + AT_ONCE, assignment.messages)
        for _ in range(last - self._sent):
            self._channel.basic_publish(
                "", assignment.queue, msgspec.json.encode(ORDER), properties
            )
        self._sent = last

    def confirmed(self, frame: Any) -> None:
        self._confirmed = (
            frame.method.delivery_tag if frame.method.multiple else self._confirmed + 1
        )
        if self._confirmed == assignment.messages:
            watch.end()
            self._channel.connection.close()
        elif self._sent - self._confirmed <= AT_ONCE // 2:
            self.send()


def publish_in_window(channel: Any) -> None:
    window = Window(channel)
    channel.confirm_delivery(window.confirmed, callback=window.start)


def run(use: Callable[[Any], None]) -> None:
    connection = pika.SelectConnection(
        parameters,
        on_open_callback=lambda connection: connection.channel(on_open_callback=use),
        on_close_callback=lambda connection, _reason: connection.ioloop.stop(),
    )
    connection.ioloop.start()


if __name__ == "__main__":
    match assignment.case, assignment.is_tuned:
        case "consume" | "latency", True:
            run(consume)
        case "consume" | "latency", False:
            consume_blocking()
        case "publish", True:
            run(publish_in_window)
        case _:
            publish_blocking()
