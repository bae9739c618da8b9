"""The kit in its users' hands: what a failing test of theirs prints, and what pytest loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import asyncio

import pytest

from evworker.broker import Event
from evworker.workers import Context, Plugin, Retry
from evworker.workers.testing import TestWorker


class OrderPlaced(Event, topic="orders.placed"):
    order_id: str


class PaymentProcessed(Event, topic="payments.processed"):
    order_id: str


class CardDeclined(Exception):
    pass


billing = Plugin("billing")


@billing.consumer(OrderPlaced, retry=Retry("5m"))
async def charge(event: OrderPlaced, ctx: Context) -> None:
    await asyncio.sleep(0)
    if event.order_id == "bad":
        raise CardDeclined("the bank said no")
    await ctx.publish(PaymentProcessed(order_id=event.order_id))


@pytest.fixture
async def worker():
    async with TestWorker(billing) as worker:
        yield worker


async def test_declined(worker: TestWorker) -> None:
    await worker.publish(OrderPlaced(order_id="bad"))


async def test_wrong_event(worker: TestWorker) -> None:
    await worker.publish(OrderPlaced(order_id="7"))
    assert worker.published.of(PaymentProcessed) == [PaymentProcessed(order_id="8")]


async def test_wrong_records(worker: TestWorker) -> None:
    await worker.publish(OrderPlaced(order_id="7"))
    assert not worker.consumed


async def test_right(worker: TestWorker) -> None:
    with pytest.raises(CardDeclined):
        await worker.publish(OrderPlaced(order_id="bad"))
    assert len(worker.retried) == 1
"""


def run_pytest(folder: Path, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--show-capture=no", *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def test_what_a_failing_test_prints(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    (tmp_path / "test_billing.py").write_text(TESTS)
    printed = run_pytest(tmp_path, "-W", "error")
    assert "3 failed, 1 passed" in printed
    lines = printed.splitlines()
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
    assert "test_billing.CardDeclined: the bank said no" in errors
    assert (
        "<billing.charge: OrderPlaced(order_id='bad') dead-lettered, failed at attempt 2: "
        "CardDeclined: the bank said no>"
    ) in errors
    assert (
        "At index 0 diff: PaymentProcessed(order_id='7') != PaymentProcessed(order_id='8')"
    ) in errors
    records = "[<billing.charge: OrderPlaced(order_id='7') handled>]"
    assert f"AssertionError: assert not {records}" in errors
    assert f"+  where {records} = <TestWorker billing>.consumed" in errors
    # From the test straight to the handler: neither the kit's code nor the worker's is in between.
    declined = printed.partition("test_declined")[2].partition("test_wrong_event")[0]
    assert "test_billing.py:" in declined
    assert "evworker/workers" not in declined


def test_one_option_has_the_same_tests_run_on_a_real_broker(
    tmp_path: Path, broker_url: str
) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n"
    )
    strict = TESTS.replace("@pytest.fixture", "import pytest_asyncio\n@pytest_asyncio.fixture")
    strict += (
        "\n\npytestmark = pytest.mark.asyncio\n\n"
        "async def test_where(worker: TestWorker) -> None:\n"
        "    print('on', worker.url)\n"
    )
    (tmp_path / "test_billing.py").write_text(strict)
    printed = run_pytest(tmp_path, "--evworker-broker", broker_url, "-k", "right or where", "-s")
    assert f"on {broker_url}" in printed
    assert "2 passed" in printed


def test_whoever_does_not_use_it_does_not_load_it() -> None:
    code = "import sys, evworker.pytest_plugin as p; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"evworker.broker", "evworker.workers", "pytest", "msgspec"} & set(loaded)


def test_the_kit_brings_no_database_with_it() -> None:
    code = "import sys, evworker.workers.testing; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sqlalchemy" not in loaded
    assert "pytest" not in loaded
