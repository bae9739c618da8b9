"""TLS: `amqps://` with an authority of one's own, and with a certificate to show.

A proxy with TLS stands in front of the broker's plain port. Its certificates are made by the
`openssl` command, as those of most brokers are.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from evworker.broker import (
    BrokerAddress,
    BrokerError,
    BrokerRefusedError,
    Connection,
    Publisher,
    count_messages,
)
from evworker.broker.delivery import Delivery
from evworker.broker.intake import Intake
from tests.broker.deadletters.letters import Sent, put
from tests.broker.events import OrderPlaced
from tests.conftest import Cleanup
from tests.programs import program
from tests.proxy import Proxy, listening
from tests.waiting import eventually


@dataclass(frozen=True)
class Certificates:
    folder: Path

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def server_context(self, *, asks_clients: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.file("ca.pem"))
        context.load_cert_chain(self.file("server.pem"), self.file("server.key"))
        context.verify_mode = ssl.CERT_REQUIRED if asks_clients else ssl.CERT_NONE
        return context


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run([program("openssl"), *arguments], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    (folder / f"{name}.conf").write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=ca\nprompt=no\n"
        f"[dn]\nCN=evworker test {name}\n"
        "[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\n"
    )
    openssl(
        folder,
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-sha256"),
        *("-config", f"{name}.conf", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )


def make_certificate(folder: Path, name: str, extensions: str) -> None:
    (folder / f"{name}.ext").write_text(
        "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n" + extensions
    )
    openssl(
        folder,
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
    )
    openssl(
        folder,
        *("x509", "-req", "-in", f"{name}.csr", "-days", "2", "-sha256", "-CAcreateserial"),
        *("-CA", "ca.pem", "-CAkey", "ca.key", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
    )


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    make_authority(folder, "ca")
    make_authority(folder, "stranger")
    make_certificate(folder, "server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    make_certificate(folder, "client", "extendedKeyUsage=clientAuth\n")
    return Certificates(folder)


@pytest.fixture
async def tls_proxy(broker_url: str, certificates: Certificates) -> AsyncIterator[Proxy]:
    context = certificates.server_context(asks_clients=False)
    async with listening(broker_url, context) as proxy:
        yield proxy


@pytest.fixture
async def asking_proxy(broker_url: str, certificates: Certificates) -> AsyncIterator[Proxy]:
    """It lets nobody in who shows no certificate of our authority."""
    context = certificates.server_context(asks_clients=True)
    async with listening(broker_url, context) as proxy:
        yield proxy


def url_of(proxy: Proxy, *options: str) -> str:
    """As a user writes it: what is tested is the URL."""
    address = proxy.address
    vhost = "" if address.vhost == "/" else address.vhost
    port = address.hosts[0][1]
    return f"amqps://{address.user}:{address.password}@127.0.0.1:{port}/{vhost}?{'&'.join(options)}"


async def refusal_of(address: str | BrokerAddress) -> BrokerError:
    connection = Connection(address, name="test")
    with pytest.raises(BrokerError) as refused:
        await connection.open()
    await connection.close()
    return refused.value


async def test_events_go_over_tls(
    tls_proxy: Proxy, certificates: Certificates, connection: Connection, exchange: str
) -> None:
    url = url_of(tls_proxy, f"cafile={certificates.file('ca.pem')}")
    async with Publisher(url, exchange=exchange) as publisher:
        await asyncio.gather(
            *(publisher.publish(OrderPlaced(order_id=str(number))) for number in range(100))
        )
        assert tls_proxy.connections == 1
    assert await count_messages(connection, f"{exchange}.unrouted") == 100


async def test_it_comes_back_over_tls(
    tls_proxy: Proxy, certificates: Certificates, exchange: str
) -> None:
    url = url_of(tls_proxy, f"cafile={certificates.file('ca.pem')}")
    async with Publisher(url, exchange=exchange) as publisher:
        tls_proxy.cut()
        await eventually(lambda: tls_proxy.connections == 2)
        await publisher.publish(OrderPlaced(order_id="1"))


async def test_deliveries_come_over_tls_and_are_settled(
    tls_proxy: Proxy,
    certificates: Certificates,
    connection: Connection,
    unique: str,
    cleanup: Cleanup,
) -> None:
    bodies = [b"%d" % n for n in range(500)] + [bytes(1_000_000)]
    await (await connection.channel()).queue_declare(cleanup.queue(unique), durable=True)
    await put(connection, unique, (Sent(id=None, body=body) for body in bodies))
    came: list[Delivery] = []
    url = url_of(tls_proxy, f"cafile={certificates.file('ca.pem')}")
    async with Connection(url, name="test") as secured:
        first = await Intake.open(secured, unique, prefetch=1_000, receive=came.append)
        await eventually(lambda: len(came) == len(bodies))
        assert [delivery.body for delivery in came] == bodies
        assert all([await delivery.ack() for delivery in came[:400]])
        assert all([await delivery.hand_back() for delivery in came[400:450]])
        tls_proxy.cut()
        await first.ended()
        assert not await came[-1].ack()
        again: list[Delivery] = []
        second = await Intake.open(secured, unique, prefetch=1_000, receive=again.append)
        await eventually(lambda: bodies[-1] in [delivery.body for delivery in again])
        assert {delivery.body for delivery in again} >= set(bodies[400:])
        assert all([await delivery.ack() for delivery in again])
        await second.close()


@pytest.mark.parametrize("authority", [None, "stranger.pem"])
async def test_an_authority_that_is_not_known_is_refused_and_the_option_named(
    tls_proxy: Proxy, certificates: Certificates, authority: str | None
) -> None:
    options = [f"cafile={certificates.file(authority)}"] if authority else []
    error = await refusal_of(url_of(tls_proxy, *options))
    assert isinstance(error, BrokerRefusedError)
    assert "can't be trusted" in str(error)
    assert "?cafile=" in str(error)


async def test_a_certificate_for_another_name_is_refused(
    tls_proxy: Proxy, certificates: Certificates
) -> None:
    port = tls_proxy.address.hosts[0][1]
    address = replace(
        tls_proxy.address, hosts=(("localhost", port),), cafile=certificates.file("ca.pem")
    )
    error = await refusal_of(address)
    assert isinstance(error, BrokerRefusedError)
    assert f"the certificate of localhost:{port} can't be trusted" in str(error)
    assert "mismatch" in str(error)


async def test_a_client_certificate_is_shown(
    asking_proxy: Proxy, certificates: Certificates, exchange: str
) -> None:
    url = url_of(
        asking_proxy,
        f"cafile={certificates.file('ca.pem')}",
        f"certfile={certificates.file('client.pem')}",
        f"keyfile={certificates.file('client.key')}",
    )
    async with Publisher(url, exchange=exchange) as publisher:
        await publisher.publish(OrderPlaced(order_id="1"))


async def test_without_a_client_certificate_one_that_is_asked_for_is_missed(
    asking_proxy: Proxy, certificates: Certificates
) -> None:
    error = await refusal_of(url_of(asking_proxy, f"cafile={certificates.file('ca.pem')}"))
    # TLS 1.3 lets the server say no after its handshake: an alert or a closed connection.
    assert "does it ask for a client certificate (?certfile=…&keyfile=…)?" in str(error)


async def test_tls_towards_a_plain_port_is_told_so(proxy: Proxy) -> None:
    error = await refusal_of(replace(proxy.address, tls=True))
    assert "is that its port for TLS" in str(error)


async def test_plain_amqp_towards_a_tls_port_is_an_error(tls_proxy: Proxy) -> None:
    error = await refusal_of(replace(tls_proxy.address, tls=False))
    assert isinstance(error, BrokerError)
    assert f"127.0.0.1:{tls_proxy.address.hosts[0][1]}" in str(error)
