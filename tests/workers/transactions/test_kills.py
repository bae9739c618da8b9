"""A worker that is killed between any two steps of a delivery: one effect all the same."""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

from tests.waiting import eventually
from tests.workers.stage import OrderPlaced, Stage
from tests.workers.transactions.dying_process import STEPS, make_plugin
from tests.workers.transactions.shop import Shop

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ("committed", "acked")


async def killed_at(step: str, stage: Stage, queue: str, database_url: str) -> int:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.workers.transactions.dying_process"),
        *("--url", stage.url, "--exchange", stage.exchange, "--queue", queue),
        *("--database", database_url, "--step", step),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        return await asyncio.wait_for(process.wait(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_killed_at_each_step_it_takes_effect_once(
    stage: Stage, shop: Shop, database_url: str
) -> None:
    """Seven consumers of one event, each in a worker that dies at another step."""
    queues = {step: stage.queue(step) for step in STEPS}
    plugin = make_plugin(queues)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"), id="e-1")
    killed = await asyncio.gather(
        *(killed_at(step, stage, queue, database_url) for step, queue in queues.items())
    )
    assert killed == [-signal.SIGKILL] * len(STEPS)
    assert await shop.effects() == sorted(COMMITTED)
    for step, queue in queues.items():
        if step != "acked":  # where the kill may have come before the ack was on the wire
            await eventually(partial(is_back, stage, queue), f"redelivery of {step!r}")
    healthy = await stage.work(plugin, database=database_url, relay=False)
    assert healthy.counts.handled == len(STEPS) - len(COMMITTED)
    assert healthy.counts.duplicates in (1, 2)
    assert await shop.effects() == sorted(STEPS)
    assert await shop.inbox() == sorted((step, "e-1") for step in STEPS)
    assert await shop.outbox() == ["payments.processed"] * len(STEPS)


async def is_back(stage: Stage, queue: str) -> bool:
    return await stage.waiting_in(queue) == 1
