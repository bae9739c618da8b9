"""`evworker demo`: it tells the truth, and leaves nothing behind."""

from __future__ import annotations

import re
import signal

from evworker.broker import Connection, count_messages
from tests.cli.command import Command, line_with

QUEUES = ("billing", "billing.dlq", "billing.retry.1s", "notifications", "analytics", "unrouted")


async def left_behind(broker_url: str, prefix: str) -> list[str]:
    async with Connection(broker_url, name="test") as connection:
        names = [f"{prefix}.{queue}" for queue in QUEUES]
        return [name for name in names if await count_messages(connection, name) is not None]


async def test_the_demo_plays(evworker: Command, broker_url: str) -> None:
    played = await evworker("demo", "-b", broker_url)
    assert (played.code, played.err) == (0, "")
    assert "attempt 2 failed, again in 1 s: the bank does not answer" in played.out
    assert "charged at attempt 3" in played.out
    assert "dead letter: 1999.00 is over the limit of Alan's card" in played.out
    assert re.search(r"all +13 += +12 +\+ +1 +2\n", played.out)
    assert "\x1b" not in played.out
    assert not any(line.endswith(" ") for line in played.out.splitlines())
    [prefix] = set(re.findall(r"demo-[0-9a-f]{6}", played.out))
    assert await left_behind(broker_url, prefix) == []


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


async def test_its_shop_runs_outside_the_demo(evworker: Command, broker_url: str) -> None:
    shown = await evworker(
        "topology", "show", "-A", "evworker.cli.demo_shop:shop", "-b", broker_url, "--json"
    )
    names = {thing["name"] for thing in shown.json}
    assert {"shop.billing", "shop.notifications", "shop.analytics"} <= names


async def test_without_a_broker_it_says_how_to_get_one(evworker: Command) -> None:
    played = await evworker("demo", "-b", "amqp://127.0.0.1:1/")
    assert played.code == 4
    assert "docker run" in played.error
