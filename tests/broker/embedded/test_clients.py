"""Clients that people use, as they are: each publishes, and takes what was published."""

from __future__ import annotations

import asyncio
import subprocess

import aio_pika
import kombu.connection
import pika
import pytest

from evworker.broker.embedded import EmbeddedBroker
from tests.programs import program


async def test_aio_pika(broker: EmbeddedBroker) -> None:
    connection = await aio_pika.connect_robust(broker.url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.declare_exchange("x", aio_pika.ExchangeType.TOPIC)
        queue = await channel.declare_queue("q", durable=True)
        await queue.bind(exchange, "a.*")
        await exchange.publish(aio_pika.Message(b"hello", headers={"k": 1}), "a.b")
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    assert (message.body, message.headers) == (b"hello", {"k": 1})
                break


async def test_pika(broker: EmbeddedBroker) -> None:
    def talk() -> tuple[bytes, int]:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.queue_declare("q", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "q", b"hello", mandatory=True)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("", "none", b"", mandatory=True)
        method, _, body = next(channel.consume("q"))
        channel.basic_ack(method.delivery_tag)
        returned = channel.cancel()
        connection.close()
        return body, returned

    assert await asyncio.to_thread(talk) == (b"hello", 0)


async def test_kombu(broker: EmbeddedBroker) -> None:
    def talk() -> object:
        with kombu.connection.Connection(broker.url) as connection:
            queue = connection.SimpleQueue("q")
            queue.put({"hello": "world"})
            message = queue.get(timeout=10)
            message.ack()
            queue.close()
            return message.payload

    assert await asyncio.to_thread(talk) == {"hello": "world"}


async def test_amqp_tools(broker: EmbeddedBroker) -> None:
    program("amqp-publish", instead="; Debian has it in amqp-tools")

    def run(tool: str, *arguments: str) -> str:
        command = [f"amqp-{tool}", f"--url={broker.url.removesuffix('/')}", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, timeout=30)
        return done.stdout.decode()

    def talk() -> tuple[str, str]:
        named = run("declare-queue", "--queue=q", "--durable")
        run("publish", "--routing-key=q", "--body=hello", "--persistent")
        return named.strip(), run("get", "--queue=q")

    assert await asyncio.to_thread(talk) == ("q", "hello")
