"""Broker URLs: what they may say, and that they never tell the password."""

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evworker.broker import BrokerAddress, BrokerUrlError, Connection

SECRET = "s3cret"


def test_everything_has_a_default_but_the_host() -> None:
    address = BrokerAddress.parse("amqp://rabbit")
    assert address.hosts == (("rabbit", 5672),)
    assert (address.user, address.password, address.vhost) == ("guest", "guest", "/")
    assert not address.tls
    assert address.ssl_context() is None
    assert not address.external_login


def test_everything_can_be_said() -> None:
    address = BrokerAddress.parse(
        "amqps://shop:s3cret@one,two:5673/orders?heartbeat=7"
        "&cafile=/ca.pem&certfile=/c.pem&keyfile=/k.pem&auth=external"
    )
    assert address == BrokerAddress(
        hosts=(("one", 5671), ("two", 5673)),
        user="shop",
        password="s3cret",
        vhost="orders",
        tls=True,
        heartbeat_s=7,
        cafile="/ca.pem",
        certfile="/c.pem",
        keyfile="/k.pem",
        external_login=True,
    )


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("[::1]", (("::1", 5672),)),
        ("[::1]:5673", (("::1", 5673),)),
        ("[::1]:1,[fe80::2],three:3", (("::1", 1), ("fe80::2", 5672), ("three", 3))),
        ("one,[::1]", (("one", 5672), ("::1", 5672))),
    ],
)
def test_hosts_may_be_several_and_ipv6(hosts: str, expected: tuple[tuple[str, int], ...]) -> None:
    address = BrokerAddress.parse(f"amqp://user:{SECRET}@{hosts}/v")
    assert address.hosts == expected
    assert BrokerAddress.parse(str(address)).hosts == expected


@pytest.mark.parametrize(
    ("path", "vhost"),
    [
        ("", "/"),
        ("/", "/"),
        ("/%2F", "/"),
        ("/orders", "orders"),
        ("/a%2Fb", "a/b"),
        ("/%2Forders", "/orders"),
        ("/50%25", "50%"),
    ],
)
def test_the_virtual_host_is_the_path(path: str, vhost: str) -> None:
    address = BrokerAddress.parse(f"amqp://host{path}")
    assert address.vhost == vhost
    # aiormq takes the path without its first slash, and "/" for the default.
    seen = address.url_of("host", 1).path
    assert (seen if seen == "/" else seen[1:]) == vhost


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@given(user=words, password=words)
def test_any_login_can_be_written_and_reaches_the_broker(user: str, password: str) -> None:
    url = f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@one,two/"
    address = BrokerAddress.parse(url)
    assert (address.user, address.password) == (user, password)
    built = address.url_of("two", 5672)
    assert (built.user, built.password, built.host) == (user, password, "two")


def test_the_password_is_in_no_representation() -> None:
    address = BrokerAddress.parse(f"amqp://user:{SECRET}@host/vhost")
    assert SECRET not in f"{address} {address!r}"
    assert str(address) == "amqp://user@host:5672/vhost"
    connection = Connection(address, name="test")
    assert SECRET not in f"{connection} {connection!r}"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "it has no scheme"),
        ("localhost:5672", "it has no scheme"),
        (f"user:{SECRET}@localhost", "it has no scheme"),
        (f"http://user:{SECRET}@localhost", "begins with 'http://'"),
        (f"ampq://user:{SECRET}@localhost", "begins with 'ampq://'"),
        ("amqp://", "a host is missing"),
        (f"amqp://user:{SECRET}@/vhost", "a host is missing"),
        (f"amqp://user:{SECRET}@one,,two/", "a host is missing"),
        (f"amqp://user:{SECRET}@host:port/", "the host 'host:port' or its port is wrong"),
        (f"amqp://user:{SECRET}@host:99999/", "the host 'host:99999' or its port is wrong"),
        (f"amqp://user:{SECRET}@[::1/", "is wrong"),
        (f"amqp://user:{SECRET}", "the host number 1 or its port is wrong"),
        (f"amqp://user:{SECRET}@one,other:{SECRET}@two/", "%40"),
        (f"amqp://user:{SECRET}@host/#fragment", "%23"),
        (f"amqp://user:a/{SECRET}@host/", "%2F"),
        (f"amqp://user:{SECRET}/a@host/", "%2F"),
        (f"amqp://user:a?{SECRET}@host/", "%3F"),
        (f"amqp://user:{SECRET}#a@host/", "%23"),
        (f"amqp://user:{SECRET}@host/?hartbeat=5", "the option 'hartbeat' is unknown"),
        (f"amqp://user:{SECRET}@host/?heartbeat=soon", "heartbeat='soon'"),
        (f"amqp://user:{SECRET}@host/?heartbeat=-1", "heartbeat='-1'"),
        (f"amqp://user:{SECRET}@host/?heartbeat=65535", "heartbeat='65535'"),
        (f"amqp://user:{SECRET}@host/?auth=magic", "auth='magic'"),
    ],
)
def test_a_bad_url_names_the_part_and_never_the_password(url: str, reason: str) -> None:
    with pytest.raises(BrokerUrlError) as refused:
        BrokerAddress.parse(url)
    assert reason in str(refused.value)
    assert "write for example amqp://" in str(refused.value)
    error: BaseException | None = refused.value
    while error is not None:  # a traceback prints the whole chain
        assert SECRET not in f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_odd_characters_in_a_password_are_no_way_to_have_it_printed() -> None:
    # urlsplit would refuse this one, and quote it whole.
    address = BrokerAddress.parse("amqp://user:s3\u2100[cret@host/")
    assert address.password == "s3\u2100[cret"


def test_tls_files_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(BrokerUrlError, match=r"TLS files.*ca\.pem.*No such file"):
        Connection(f"amqps://user:{SECRET}@host/?cafile={missing}", name="test")
    (tmp_path / "no.pem").write_text("this is no certificate")
    with pytest.raises(BrokerUrlError, match=r"TLS files.*no\.pem"):
        Connection(f"amqps://user:{SECRET}@host/?certfile={tmp_path / 'no.pem'}", name="test")


def test_the_servers_certificate_is_always_verified() -> None:
    context = BrokerAddress.parse("amqps://host/").ssl_context()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("amqp://user:s3cret/vhost", ["s3cret"]),
        ("amqp://user:s3cret", ["s3cret"]),
        ("amqp://me@corp.com:hunter2/secret@host/", ["hunter2", "secret"]),
        ("amqp://me@corp.com:hunter2@host/", ["hunter2"]),
        ("amqp://u:hunt?er2@host/", ["hunt", "er2"]),
        ("amqp://u:hunt#er2@host/", ["hunt", "er2"]),
        ("amqp://u:hunt/er2@host/?heartbeat=5", ["hunt", "er2"]),
        ("amqp://u:hunter2@host/?cafile=a@b", ["hunter2"]),
        ("amqp://u:pw1x@h1,u:pw2x@h2/", ["pw1x", "pw2x"]),
        ("amqp://u:pw1x@h1,u:pw2x@h2:port/", ["pw1x", "pw2x"]),
        ("amqps://u:pw?x=y&z@host/", ["pw?", "x=y"]),
    ],
)
def test_no_part_of_a_password_that_is_written_wrongly_is_shown(url: str, parts: list[str]) -> None:
    with pytest.raises(BrokerUrlError) as refused:
        BrokerAddress.parse(url)
    error: BaseException | None = refused.value
    while error is not None:
        shown = f"{error!r} {error}".replace("amqp://user:password@localhost:5672/vhost", "")
        assert not [part for part in parts if part in shown]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
