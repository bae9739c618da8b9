"""Logging in, tuning, opening and closing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from pamqp import commands
from pamqp.commands import Basic

from tests.conformance.client import Link, RefusedError, connect, linked
from tests.conformance.conftest import New, Target
from tests.waiting import eventually


async def test_the_broker_says_who_it_is(target: Target, link: Link) -> None:
    product = "evworker embedded" if target.is_embedded else "RabbitMQ"
    assert link.server_properties["product"] == product
    for capability in (
        "publisher_confirms",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "exchange_exchange_bindings",
        "authentication_failure_close",
    ):
        assert link.server_properties["capabilities"][capability] is True


async def test_a_wrong_password_is_refused(target: Target) -> None:
    link = await connect(target.url)
    with pytest.raises(RefusedError, match="connection 403 ACCESS_REFUSED - Login was refused"):
        await link.handshake(password="wrong")
    await link.close()


async def test_another_protocol_is_answered_with_ours(target: Target) -> None:
    where = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert (await reader.readexactly(8)).startswith(b"AMQP")
    with suppress(ConnectionResetError):
        assert not await reader.read()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def test_limits_beyond_what_was_offered_are_refused(target: Target) -> None:
    link = await connect(target.url)
    with pytest.raises((RefusedError, TimeoutError)):  # RabbitMQ is silent for 3 seconds, then gone
        await link.handshake(channel_max=9_000)
    await link.close()


async def test_a_connection_closes_when_the_client_asks(target: Target) -> None:
    async with linked(target.url) as link:
        await link.channel()
    assert await link.ended() is None


async def test_heartbeats_come_without_being_asked_for(target: Target) -> None:
    async with linked(target.url, heartbeat=1) as link:
        await eventually(lambda: link.heartbeats, "a heartbeat")
        assert not link.closed.done()


async def test_a_client_that_is_silent_for_too_long_is_cut_off(target: Target) -> None:
    async with linked(target.url, heartbeat=1) as link:
        assert await link.ended() is None  # it never sends a heartbeat


async def test_a_secret_can_be_renewed(link: Link) -> None:
    link.send_method(commands.Connection.UpdateSecret("guest", "expired"))
    await link.expect(commands.Connection.UpdateSecretOk)


async def test_a_channel_closes_when_the_client_asks_and_can_be_opened_again(link: Link) -> None:
    channel = await link.channel()
    answer = await channel.call(commands.Channel.Close(200, "", 0, 0))
    assert isinstance(answer, commands.Channel.CloseOk)
    assert isinstance(await channel.call(commands.Channel.Open()), commands.Channel.OpenOk)


async def test_a_channel_that_was_refused_leaves_the_others_alone(link: Link, new: New) -> None:
    one, other = await link.channel(), await link.channel()
    assert (await one.refuses(Basic.Get(queue=new("none")))).scope == "channel"
    await other.declare(new("q"))
    again = link.raw_channel(one.number)
    assert isinstance(await again.call(commands.Channel.Open()), commands.Channel.OpenOk)


async def test_a_channel_cannot_be_opened_twice(link: Link) -> None:
    channel = await link.channel()
    refusal = await channel.refuses(commands.Channel.Open())
    assert (refusal.scope, refusal.code) == ("connection", 504)


async def test_a_channel_has_to_be_opened_first(link: Link) -> None:
    refusal = await link.raw_channel(7).refuses(Basic.Qos())
    assert (refusal.scope, refusal.code) == ("connection", 504)
    assert refusal.text == "CHANNEL_ERROR - expected 'channel.open'"


async def test_flow_can_be_switched_on_only(link: Link) -> None:
    channel = await link.channel()
    assert (await channel.call(commands.Channel.Flow(active=True))).active
    refusal = await channel.refuses(commands.Channel.Flow(active=False))
    assert (refusal.scope, refusal.code) == ("connection", 540)
