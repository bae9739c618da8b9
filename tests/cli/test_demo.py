"""`evworker demo`: it tells the truth, and leaves nothing behind."""

from __future__ import annotations

import re
import signal

from evworker.broker import Connection, count_messages
from evworker.broker.embedded import EmbeddedBroker
from tests.cli.command import Command, line_with, without_sqlite

QUEUES = (
    *("billing", "billing.dlq", "billing.retry.1s", "notifications", "analytics"),
    *("refunds", "refunds.dlq", "refunds.retry.1s", "letters", "unrouted"),
)


async def left_behind(broker_url: str, prefix: str) -> list[str]:
    async with Connection(broker_url, name="test") as connection:
        names = [f"{prefix}.{queue}" for queue in QUEUES]
        return [name for name in names if await count_messages(connection, name) is not None]


def check_first_half(played: str) -> None:
    assert "attempt 2 failed, again in 1 s: the bank does not answer" in played
    assert "charged at attempt 3" in played
    assert "dead letter: 1999.00 is over the limit of Alan's card" in played
    assert re.search(r"all +13 += +12 +\+ +1 +2\n", played)


def check_second_half(played: str) -> None:
    assert "2 events wait in the outbox" in played
    assert "rolled back, its card was declined: no row, no event" in played
    assert re.search(r"refunds +goods.returned 1001 +✔ paid back\n", played)
    assert "paid back at attempt 2" in played
    assert "The second event of order 1001 was found in the inbox" in played
    assert re.search(r"all +2 +2\n", played)
    assert "2 letters were written, 0 events are left in the outbox." in played


async def test_the_demo_plays_with_no_server(evworker: Command) -> None:
    played = await evworker("demo")
    assert (played.code, played.err) == (0, "")
    assert "on an embedded broker: in this process, in memory" in played.out
    assert "in the broker's memory after" in played.out
    assert "disk" not in played.out
    check_first_half(played.out)
    check_second_half(played.out)
    assert "evworker run --embedded evworker.cli.demo.shop:shop" in played.out
    assert "\x1b" not in played.out
    assert not any(line.endswith(" ") for line in played.out.splitlines())


async def test_the_demo_plays_on_a_broker_that_is_named(evworker: Command, broker_url: str) -> None:
    played = await evworker("demo", env={"EVWORKER_BROKER_URL": broker_url})
    assert (played.code, played.err) == (0, "")
    async with Connection(broker_url, name="test") as connection:
        is_embedded = connection.version.is_embedded
        assert str(connection.address) in played.out
    assert ("on the broker's disk after" in played.out) is not is_embedded
    assert "--embedded" not in played.out
    check_first_half(played.out)
    check_second_half(played.out)
    [prefix] = set(re.findall(r"demo-[0-9a-f]{6}", played.out))
    assert await left_behind(broker_url, prefix) == []


async def test_without_sqlite_it_plays_the_half_that_it_can(evworker: Command) -> None:
    without_sqlite(evworker)
    async with evworker.started("demo") as process:
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
    check_first_half(out.decode())
    assert "pip install 'evworker[sqlite]'" in out.decode()
    assert "goods.returned" not in out.decode()


async def test_an_interrupted_demo_leaves_nothing_behind(
    evworker: Command, broker_url: str
) -> None:
    async with evworker.started("demo", "-b", broker_url, env={"PYTHONUNBUFFERED": "1"}) as process:
        line = await line_with(process.stdout, ".analytics")
        await line_with(process.stdout, "again in 1 s")
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err.decode().strip()) == (130, "")
    prefix = re.search(r"demo-[0-9a-f]{6}", line)
    assert prefix is not None
    assert await left_behind(broker_url, prefix[0]) == []


async def test_an_interrupt_ends_it_though_the_broker_has_gone(evworker: Command) -> None:
    async with (
        EmbeddedBroker() as broker,
        evworker.started("demo", "-b", broker.url, env={"PYTHONUNBUFFERED": "1"}) as process,
    ):
        await line_with(process.stdout, "again in 1 s")
        await broker.close()
        process.send_signal(signal.SIGINT)
        assert "has gone" in await line_with(process.stderr, "error: ")
        assert await process.wait() == 4


async def test_its_shop_runs_outside_the_demo(evworker: Command, broker_url: str) -> None:
    shown = await evworker(
        "topology", "show", "-A", "evworker.cli.demo.shop:shop", "-b", broker_url, "--json"
    )
    names = {thing["name"] for thing in shown.json}
    assert {"shop.billing", "shop.notifications", "shop.analytics"} <= names


async def test_without_a_broker_it_says_how_to_get_one(evworker: Command) -> None:
    played = await evworker("demo", "-b", "amqp://127.0.0.1:1/")
    assert played.code == 4
    assert "docker run" in played.error
    assert "the demo brings its own" in played.error
