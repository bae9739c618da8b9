"""Publishing: confirms, returns, and what a message may be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp.commands import Basic, Confirm

from tests.conformance.client import Channel, Link
from tests.conformance.conftest import New

BIG = 300_000
"""More than two frames."""


async def test_publishes_are_confirmed_in_order(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind})
    for number in range(5):
        ch.publish(queue, str(number).encode())
    confirmed: set[int] = set()
    while len(confirmed) < 5:
        ack = await ch.next_confirm()
        assert isinstance(ack, Basic.Ack)
        tag = ack.delivery_tag or 0
        confirmed |= set(range(1, tag + 1)) if ack.multiple else {tag}
    assert confirmed == {1, 2, 3, 4, 5}
    assert await ch.take(queue) == ["0", "1", "2", "3", "4"]


async def test_without_confirms_there_are_none(link: Link, new: New) -> None:
    queue = new("q")
    channel = await link.channel()
    await channel.declare(queue)
    channel.publish(queue, b"unconfirmed")
    await channel.counts(queue, 1)
    assert channel.confirms.empty()


async def test_confirms_can_be_asked_for_twice(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.put(queue, "1")
    await ch.call(Confirm.Select())
    ch.publish(queue, b"2")
    assert (await ch.next_confirm()).delivery_tag == 2


async def test_what_is_unroutable_is_returned_before_its_ack(ch: Channel, new: New) -> None:
    key = new("none")
    ch.publish(key, b"body", mandatory=True, headers={"k": "v"}, message_id="m1")
    returned = await ch.returned_message()
    assert (returned.method.reply_code, returned.method.reply_text) == (312, "NO_ROUTE")
    assert (returned.method.exchange, returned.method.routing_key) == ("", key)
    assert (returned.text, returned.headers) == ("body", {"k": "v"})
    assert returned.properties.message_id == "m1"
    assert await ch.confirmed()


async def test_what_is_unroutable_is_acked_where_nobody_asked(ch: Channel, new: New) -> None:
    ch.publish(new("none"))
    assert await ch.confirmed()
    assert ch.returned.empty()


async def test_what_is_routed_is_not_returned(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.put(queue, "m", mandatory=True)
    assert ch.returned.empty()


async def test_all_properties_arrive(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind})
    properties: dict[str, Any] = {
        "content_type": "text/plain",
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": 3,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "60000",
        "message_id": "m",
        "timestamp": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "message_type": "t",
        "user_id": "guest",
        "app_id": "a",
    }
    await ch.put(queue, "body", **properties)
    message = await ch.get(queue)
    assert message is not None
    assert {name: getattr(message.properties, name) for name in properties} == properties


async def test_all_kinds_of_headers_arrive(ch: Channel, new: New, kind: str) -> None:
    queue = new("q")
    await ch.declare(queue, arguments={"x-queue-type": kind})
    headers: dict[str, Any] = {
        "text": "häß",
        "bytes": bytearray(b"\x00\xff"),
        "true": True,
        "small": -5,
        "large": 2**62,
        "half": 0.5,
        "none": None,
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "list": ["a", 1, [True]],
        "table": {"deep": {"deeper": "x"}},
        "empty": "",
    }
    await ch.put(queue, "", headers=headers)
    message = await ch.get(queue)
    assert message is not None
    assert message.headers.items() >= headers.items()  # of a quorum queue there may be more


@pytest.mark.parametrize("size", [0, 1, BIG])
async def test_bodies_of_all_sizes_arrive(ch: Channel, new: New, size: int) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.put(queue, bytes(size))
    message = await ch.get(queue)
    assert message is not None
    assert message.body == bytes(size)


async def test_another_users_id_closes_the_channel(ch: Channel, new: New) -> None:
    ch.publish(new("none"), user_id="nobody")
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == ("channel", 406)


async def test_immediate_is_not_implemented(ch: Channel, new: New) -> None:
    ch.publish(new("none"), immediate=True)
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == ("connection", 540)


@pytest.mark.parametrize("expiration", ["-1", "x", "1.5"])
async def test_an_expiration_is_a_whole_number(ch: Channel, new: New, expiration: str) -> None:
    queue = new("q")
    await ch.declare(queue)
    ch.publish(queue, expiration=expiration)
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == ("channel", 406)
    assert refusal.text.startswith(f"PRECONDITION_FAILED - invalid expiration '{expiration}'")
