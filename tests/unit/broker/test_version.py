"""Which brokers are good enough, and what follows from their version."""

import pytest

from evworker.broker import BrokerRefusedError, BrokerVersion, Connection
from evworker.broker.embedded import EmbeddedBroker

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.10.8", BrokerVersion(3, 10, 8)),
        ("3.13.0-rc.2", BrokerVersion(3, 13, 0)),
        ("4.0", BrokerVersion(4, 0)),
        ("4.3.5+7.gabcdef", BrokerVersion(4, 3, 5)),
        ("10.0.1", BrokerVersion(10, 0, 1)),
    ],
)
def test_versions_are_read(text: str, expected: BrokerVersion) -> None:
    assert BrokerVersion.of({"product": "RabbitMQ", "version": text}) == expected


def test_versions_are_ordered_as_numbers() -> None:
    assert BrokerVersion(3, 9) < BrokerVersion(3, 10) < BrokerVersion(4, 0) < BrokerVersion(10, 0)
    assert str(BrokerVersion(3, 10, 8)) == "3.10.8"


@pytest.mark.parametrize("text", ["3.9.29", "3.8", "2.99.1", "", "unknown", "4"])
def test_an_old_or_nameless_broker_is_refused(text: str) -> None:
    with pytest.raises(BrokerRefusedError, match=r"RabbitMQ 3\.10 or later is needed"):
        BrokerVersion.of({"product": "RabbitMQ", "version": text})


def test_what_does_not_say_its_version_is_refused() -> None:
    with pytest.raises(BrokerRefusedError, match="the broker of an unknown version"):
        BrokerVersion.of({})


async def test_the_embedded_broker_is_known_for_what_it_is() -> None:
    async with EmbeddedBroker() as broker, Connection(broker.url, name="test") as connection:
        assert connection.version.is_embedded
        assert connection.version == BrokerVersion(4, 0, 5)
    assert not BrokerVersion.of({"product": "RabbitMQ", "version": "4.0.5"}).is_embedded


def test_features_follow_from_the_version() -> None:
    assert [
        BrokerVersion(*version).has_quorum_priorities for version in ((3, 13), (4, 2, 9), (4, 3))
    ] == [False, False, True]
    assert BrokerVersion(3, 13).max_message_bytes == 128 * MIB
    assert BrokerVersion(4, 0).max_message_bytes == 16 * MIB
