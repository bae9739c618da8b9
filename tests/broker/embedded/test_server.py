"""The embedded broker as a thing to start, to share and to stop."""

from __future__ import annotations

import pytest

from evworker.broker import BrokerRefusedError, Connection
from evworker.broker.embedded import EmbeddedBroker
from tests.conformance.client import PROTOCOL_HEADER, RefusedError, connect, linked


async def test_each_has_a_port_and_messages_of_its_own() -> None:
    async with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.url != other.url
        async with linked(one.url) as first, linked(other.url) as second:
            await (await first.channel()).declare("q")
            assert (await (await second.channel()).declare("q")).message_count == 0


async def test_nothing_is_kept() -> None:
    broker = EmbeddedBroker()
    async with broker, linked(broker.url) as link:
        channel = await (await link.channel()).confirm()
        await channel.declare("q")
        await channel.put("q", "1")
    async with broker, linked(broker.url) as link:
        assert (await (await link.channel()).declare("q")).message_count == 0


async def test_who_is_connected_when_it_closes_is_told() -> None:
    async with EmbeddedBroker() as broker:
        link = await connect(broker.url)
        await link.handshake()
        await broker.close()
        refusal = await link.ended()
        assert refusal is not None
        assert refusal.code == 320
        await link.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(broker.url)


async def test_every_virtual_host_is_there_and_is_its_own() -> None:
    async with (
        EmbeddedBroker() as broker,
        linked(broker.url_of("a/b")) as one,
        linked(broker.url_of("c")) as other,
    ):
        await (await one.channel()).declare("q")
        with pytest.raises(RefusedError, match=r"404 .* no queue 'q' in vhost 'c'"):
            await (await other.channel()).count("q")


async def test_only_the_virtual_hosts_that_were_named() -> None:
    async with EmbeddedBroker(vhosts=["shop"]) as broker:
        async with linked(broker.url_of("shop")):
            pass
        with pytest.raises(RefusedError, match="connection 530 NOT_ALLOWED - vhost none not found"):
            async with linked(broker.url_of("none")):
                pass
        with pytest.raises(BrokerRefusedError, match="virtual host 'none'"):
            await Connection(broker.url_of("none"), name="test").open()


async def test_users_have_passwords() -> None:
    async with EmbeddedBroker(users={"ann": "p@ss/word"}) as broker:
        async with Connection(broker.url, name="test") as connection:
            assert str(connection.version) == "4.0.5"
        with pytest.raises(RefusedError, match="403"):
            async with linked(broker.url.replace("ann", "bob")):
                pass


async def test_a_client_that_does_not_read_gets_no_more_than_it_has_room_for() -> None:
    async with (
        EmbeddedBroker() as broker,
        linked(broker.url) as link,
        linked(broker.url) as slow,
    ):
        channel = await (await link.channel()).confirm()
        await channel.declare("q")
        deaf = await slow.channel()
        await deaf.consume("q")
        slow.pause()
        await channel.put("q", *[bytes(100_000)] * 300)
        assert await channel.count("q") > 100
        slow.resume()
        assert len([await deaf.delivered() for _ in range(300)]) == 300


async def test_who_does_not_come_in_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evworker.broker.embedded.connection._HANDSHAKE_TIMEOUT_S", 0.05)
    async with EmbeddedBroker() as broker, linked(broker.url) as inside:
        halfway = await connect(broker.url)
        halfway.send(PROTOCOL_HEADER + b"\x01\x00\x00")
        assert await halfway.ended() is None
        await halfway.close()
        await inside.channel()
