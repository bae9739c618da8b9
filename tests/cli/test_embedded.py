"""`evworker run --embedded`: a broker that others can join, and that says what it is."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.cli.command import Command, line_with, without_sqlite
from tests.database_node import free_port
from tests.waiting import eventually

SHOP = """
    import threading

    from evworker.broker import Event
    from evworker.workers import Context, Plugin


    class OrderPlaced(Event, topic="orders.placed"):
        total: int


    class OrderPaid(Event, topic="orders.paid"):
        total: int


    plain, books = Plugin("plain"), Plugin("books")


    @plain.consumer("stuck")
    def wait(event: object, ctx: Context) -> None:
        ctx.log.info("waiting")
        threading.Event().wait()


    @books.consumer(OrderPlaced, queue="books", transactional=True)
    async def book(event: OrderPlaced, ctx: Context) -> None:
        await ctx.publish(OrderPaid(total=event.total))
"""


@pytest.fixture
def shop(evworker: Command) -> str:
    """The port for a broker to come; the plugins ``shop:plain`` and ``shop:books`` are there."""
    evworker.write("shop.py", SHOP)
    return str(free_port())


async def test_other_terminals_join_as_they_are_told(evworker: Command, shop: str) -> None:
    options = ("--embedded-port", shop, "--log-format", "console")
    async with evworker.started("run", "--embedded", "shop", *options) as worker:
        assert "not for production" in await line_with(worker.stderr, "embedded broker")
        for variable in ("EVWORKER_BROKER_URL", "EVWORKER_DATABASE_URL"):
            told = await line_with(worker.stderr, f"export {variable}=")
            evworker.environment[variable] = told.strip().partition("=")[2]
        await line_with(worker.stderr, "ready")
        async with evworker.started("tap", "orders.*") as tap:
            await line_with(tap.stderr, "tapping")
            data = ("orders.placed", '{"total": 7}', "-A", "shop")
            written = await evworker("publish", *data, "--via-outbox", "--id", "7")
            assert written.code == 0
            assert "orders.placed" in await line_with(tap.stdout, '{"total":7}')
            # What the handler published went through the outbox as well.
            assert "orders.paid" in await line_with(tap.stdout, '{"total":7}')
        assert (await evworker("publish", *data, "--id", "7")).code == 0
        await line_with(worker.stderr, "a duplicate: it was applied before")
        await evworker("publish", "orders.placed", '{"total": "many"}', "--id", "8")

        async def dead() -> bool:
            listed = (await evworker("dlq", "list", "--queue", "books", "--json")).json
            return bool(listed[0]["messages"] == 1)

        await eventually(dead)
        shown = await evworker("dlq", "show", "books")
        assert "invalid" in shown.out
        assert (await evworker("topology", "diff", "-A", "shop")).code == 0
        examined = await evworker("doctor", "-A", "shop")
        assert examined.code == 1
        assert re.search("problem +version .*embedded broker: it keeps everything", examined.out)
        worker.send_signal(signal.SIGTERM)
        assert await worker.wait() == 0


async def test_it_says_what_it_is_whatever_the_level(evworker: Command, shop: str) -> None:
    # What is typed goes before what the environment says.
    evworker.environment["EVWORKER_BROKER_URL"] = "amqp://127.0.0.1:1"
    run = ("run", "--embedded", "shop", "--embedded-port", shop, "--burst", "-l", "critical")
    for_machines = await evworker(*run, "--log-format", "json")
    told = json.loads(for_machines.err)
    assert (for_machines.code, told["level"]) == (0, "warning")
    assert "keeps everything in memory" in told["message"]
    assert "not for production" in told["message"]
    assert told["broker_url"] == f"amqp://127.0.0.1:{shop}"
    database = Path(told["database_url"].removeprefix("sqlite:///"))
    assert database.is_absolute()
    assert not database.parent.exists()
    for_people = await evworker(*run, "--log-format", "console")
    assert for_people.code == 0
    assert "keeps everything in memory" in for_people.err
    assert "not for production" in for_people.err


async def test_a_port_that_is_taken_is_one_line_and_code_4(evworker: Command, shop: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = await evworker("run", "--embedded", "shop", "--embedded-port", port)
    assert (result.code, result.out) == (4, "")
    assert f"can't listen on 127.0.0.1:{port}: Address already in use" in result.error
    assert "--embedded-port" in result.error


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--embedded", "-b", "amqp://127.0.0.1:1"], {}, "leave one out"),
        (
            [],
            {"EVWORKER_RUN_EMBEDDED": "1", "EVWORKER_BROKER_URL": "amqp://127.0.0.1:1"},
            "leave one out",
        ),
        (["--embedded-port", "5677"], {}, "--embedded-port goes with --embedded"),
    ],
)
async def test_what_is_not_clear_is_refused(
    arguments: list[str], environment: dict[str, str], said: str, evworker: Command, shop: str
) -> None:
    result = await evworker("run", "shop", *arguments, env=environment)
    assert said in result.error
    assert (result.code, result.out) == (2, "")


async def test_a_database_that_is_named_is_taken_and_kept(evworker: Command, shop: str) -> None:
    evworker.environment["EVWORKER_DATABASE_URL"] = "sqlite:///shop.db"
    await evworker("outbox", "init")
    await evworker("publish", "orders.placed", '{"total": 7}', "--via-outbox")
    run = ("run", "--embedded", "shop", "--embedded-port", shop, "--burst")
    worked = await evworker(*run, "--log-format", "json")
    told, *_, stopped = [json.loads(line) for line in worked.err.splitlines()]
    assert "from the outbox of your database is forgotten" in told["message"]
    assert "database_url" not in told
    assert stopped["handled"] == 1
    assert (evworker.folder / "shop.db").is_file()


async def test_without_sqlite_it_says_what_brings_it(evworker: Command, shop: str) -> None:
    without_sqlite(evworker)
    options = ("--embedded-port", shop, "--burst", "--log-format", "json")
    async with evworker.started("run", "--embedded", "shop:plain", *options) as worker:
        told = json.loads(await line_with(worker.stderr, "embedded"))
        assert "pip install 'evworker[sqlite]'" in told["message"]
        assert await worker.wait() == 0
    async with evworker.started("run", "--embedded", "shop:books", *options) as worker:
        assert "pip install 'evworker[sqlite]'" in await line_with(worker.stderr, "error: ")
        assert await worker.wait() == 2


async def test_a_second_signal_leaves_no_folder_behind(evworker: Command, shop: str) -> None:
    options = ("--embedded-port", shop, "--shutdown-timeout", "1h", "-l", "debug")
    run = ("run", "--embedded", "shop:plain", "--log-format", "json", *options)
    async with evworker.started(*run) as worker:
        told = json.loads(await line_with(worker.stderr, "database_url"))
        await line_with(worker.stderr, "ready")
        await evworker("publish", "stuck", "-b", told["broker_url"])
        await line_with(worker.stderr, "waiting")
        worker.send_signal(signal.SIGTERM)
        await line_with(worker.stderr, "stopping")
        worker.send_signal(signal.SIGINT)
        await line_with(worker.stderr, "gone with the embedded broker")
        assert await worker.wait() == 1
    assert not Path(told["database_url"].removeprefix("sqlite:///")).parent.exists()
