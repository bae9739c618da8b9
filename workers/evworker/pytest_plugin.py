"""What pytest loads wherever evworker is installed: one option, and nothing until it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("evworker").addoption(
        "--evworker-broker",
        metavar="URL",
        help="run each TestWorker on this RabbitMQ (amqp://…), and not on one in memory; each test "
        "has an exchange and queues of its own there, and deletes them",
    )


def pytest_configure(config: pytest.Config) -> None:
    url: str | None = config.getoption("evworker_broker")
    if url:
        from evworker.workers.testing.brokers import SharedBroker  # noqa: PLC0415 - the whole worker

        SharedBroker.chosen_url = url
