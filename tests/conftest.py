"""What every test may ask for: brokers, databases, a unique name, and somebody who cleans up.

Tests that take `broker_url` run once on each broker that EVWORKER_TEST_BROKER_URL lists; those that
take `database_url` once on each kind of database, in an empty one of their own.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import make_tables
from evworker.broker.embedded import EmbeddedBroker
from tests.databases import KINDS, own_database
from tests.logins import NoServiceError, broker_version
from tests.services import (
    BROKER_VARIABLE,
    DATABASE_VARIABLE,
    EMBEDDED,
    MYSQL_VARIABLE,
    on_embedded,
)
from tests.services import broker_urls as listed_broker_urls
from tests.wire import Wire

_HERE = Path(__file__).parent
ON_ONE_BROKER = {
    _HERE / "benchmarks",
    _HERE / "broker" / "outbox",
    _HERE / "cli",
    _HERE / "workers" / "transactions",
}
"""Where what differs between brokers is tested in the rooms below."""


class Cleanup:
    """Deletes the queues and exchanges that a test registered, once the test is over.

    Names need not exist, then or ever. A test that lets the framework derive names from a
    queue's registers the family at once: `cleanup.queue("billing", family=True)` covers
    `billing.dlq`, `billing.quarantine` and every `billing.retry.<delay>` that `retry_delays` names.
    """

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._queues: list[str] = []
        self._exchanges: list[str] = []

    def queue(self, name: str, *, family: bool = False, retry_delays: tuple[str, ...] = ()) -> str:
        """Register a queue; returns its name, so that it can be named and registered at once."""
        self._queues.append(name)
        if family or retry_delays:
            self._queues += [f"{name}.dlq", f"{name}.quarantine"]
        self._queues += [f"{name}.retry.{delay}" for delay in retry_delays]
        return name

    def exchange(self, name: str) -> str:
        """Register an exchange; returns its name."""
        self._exchanges.append(name)
        return name

    async def delete_all(self) -> None:
        if not self._queues and not self._exchanges:
            return
        connection = await aio_pika.connect(self._broker_url)
        async with connection:
            channel = await connection.channel()
            for name in dict.fromkeys(self._queues):
                await channel.queue_delete(name)
            for name in dict.fromkeys(self._exchanges):
                await channel.exchange_delete(name)


@functools.cache
def version_of(url: str) -> str | NoServiceError:
    """Asked once a process. A broker that is down fails the tests that need it, and no others."""
    try:
        return broker_version(url)
    except NoServiceError as error:
        return error


def broker_id(url: str) -> str:
    if on_embedded():
        return EMBEDDED
    version = version_of(url)
    port = urlsplit(url).port or 5672
    return f"rabbitmq-{version}" if isinstance(version, str) else f"broker-at-{port}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = set(metafunc.fixturenames)
    if "embedded" in names:
        names.discard("broker_url")
    brokers, ids = _brokers(metafunc)
    if "broker_url" in names and "database_url" in names:
        # What differs between databases does not also differ between brokers.
        pairs = [(url, KINDS[0]) for url in brokers]
        pairs += [(brokers[-1], kind) for kind in KINDS[1:]]
        labels = [f"{ids[brokers.index(url)]}-{kind}" for url, kind in pairs]
        metafunc.parametrize(("broker_url", "database_url"), pairs, ids=labels, indirect=True)
    elif "broker_url" in names:
        metafunc.parametrize("broker_url", brokers, ids=ids, indirect=True, scope="session")
    elif "database_url" in names:
        metafunc.parametrize("database_url", KINDS, indirect=True)


def _brokers(metafunc: pytest.Metafunc) -> tuple[list[str], list[str]]:
    """The URLs that the test runs on, and what they are called."""
    urls = listed_broker_urls()
    if ON_ONE_BROKER.intersection(metafunc.definition.path.parents) and not any(
        metafunc.definition.iter_markers("every_broker")
    ):
        urls = urls[-1:]
    ids = [broker_id(url) for url in urls]
    if len(set(ids)) < len(ids):
        ids = [f"{name}-at-{urlsplit(url).port}" for name, url in zip(ids, urls, strict=True)]
    return urls, ids


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a server, so that `-m "not broker and not database"` leaves the rest.

    On the embedded broker, leave out what only a real one can show.
    """
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if {"broker_url", "broker_urls"} & names and "embedded" not in names:
            item.add_marker(pytest.mark.broker)
        kind = item.callspec.params.get("database_url") if hasattr(item, "callspec") else None
        if {"postgres_url", "server", "server_url"} & names or kind not in (None, "sqlite"):
            item.add_marker(pytest.mark.database)
    if on_embedded():
        left_out = [item for item in items if item.get_closest_marker("real_broker")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def broker_urls() -> list[str]:
    """Every broker that the tests may use; at least one, and none of them need be up."""
    return listed_broker_urls()


@pytest.fixture(scope="session")
def broker_url(request: pytest.FixtureRequest) -> str:
    """An AMQP URL with credentials; the broker answers, or the test fails and says why."""
    url: str = request.param
    version = version_of(url)
    if isinstance(version, NoServiceError):
        pytest.fail(f"No RabbitMQ: {version}; {BROKER_VARIABLE} says where one is.", pytrace=False)
    return url


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedBroker]:
    """A broker of the test's own, which can be made to fail.

    A room of tests that has its `broker_url` from it runs on it alone.
    """
    async with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
async def wire(broker_url: str) -> AsyncIterator[Wire]:
    """A way to the broker on which single frames can be seen, changed and kept back."""
    async with Wire(broker_url).listening() as wire:
        yield wire


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database that is this test's own, on PostgreSQL, MariaDB and SQLite."""
    yield from _own_database(request.param, tmp_path)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on `database_url`, with evworker's tables made."""
    opened = open_engine(database_url)
    await make_tables(opened)
    yield opened
    await opened.dispose()


@pytest.fixture
def postgres_url(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that is this test's own."""
    yield from _own_database("postgresql", tmp_path)


def _own_database(kind: str, folder: Path) -> Iterator[str]:
    variable = MYSQL_VARIABLE if kind == "mariadb" else DATABASE_VARIABLE
    try:
        with own_database(kind, folder) as url:
            yield url
    except NoServiceError as error:
        pytest.fail(f"No {kind}: {error}; {variable} says where one is.", pytrace=False)


@pytest.fixture
def unique() -> str:
    """A short prefix that no other test has; queues and exchanges are named with it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw")
    return f"t-{worker}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def cleanup(broker_url: str) -> AsyncIterator[Cleanup]:
    registered = Cleanup(broker_url)
    yield registered
    await registered.delete_all()
