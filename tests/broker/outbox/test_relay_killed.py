"""kill -9 between each two steps of the relay; then a healthy one, and everything has arrived."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.broker.conftest import Bind, Take
from tests.broker.outbox.conftest import Arrivals, StartRelay
from tests.broker.outbox.relay_process import LEASE, STEPS
from tests.broker.outbox.written import row, states, write
from tests.waiting import eventually

# The first claim has all of "a" and half of "b"; the rest of "b" must stay behind it.
KEYS = ("a", "b", None, "a", "b", None, "a", "b", None, "a", "b", None, "b", None, "b", "b")
BEFORE_A_PUBLISH = ("claimed", "body read")


async def killed(step: str, engine: AsyncEngine, broker_url: str, exchange: str) -> None:
    """Run a relay until it has died at that step."""
    command = ["-m", "tests.broker.outbox.relay_process", "--die", step]
    command += ["--database", engine.url.render_as_string(hide_password=False)]
    command += ["--broker", broker_url, "--exchange", exchange]
    process = await asyncio.create_subprocess_exec(sys.executable, *command)
    async with asyncio.timeout(30):
        assert await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("step", STEPS)
async def test_nothing_is_lost_and_order_holds_when_a_relay_is_killed(
    step: str,
    postgres: AsyncEngine,
    broker_url: str,
    exchange: str,
    start_relay: StartRelay,
    bind: Bind,
    take: Take,
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    written: dict[str | None, list[str]] = {}
    ids: dict[int, str] = {}
    for number, key in enumerate(KEYS):
        (seq,) = await write(postgres, key, order_id=f"{number:02}")
        ids[seq] = (await row(postgres, seq))["event_id"]
        written.setdefault(key, []).append(f"{number:02}")

    await killed(step, postgres, broker_url, exchange)
    before = len(await arrivals.look())
    survivors = await states(postgres)
    await start_relay(postgres, lease=LEASE, batch=12)
    await eventually(lambda: is_empty(postgres), timeout_s=20)
    await eventually(lambda: arrivals.are(*(f"{number:02}" for number in range(len(KEYS)))))

    assert {key: arrivals.keys[key] for key in ("a", "b")} == {
        key: written[key] for key in ("a", "b")
    }
    repeated = [one for one, times in Counter(arrivals.ids).items() if times > 1]
    assert len(set(arrivals.ids)) == len(KEYS)  # a repeated event has the id that it had
    assert set(repeated) <= set(arrivals.ids[:before])
    if step in BEFORE_A_PUBLISH:
        assert before == 0
        assert not repeated
    if step == "confirmed and not settled":
        assert len(repeated) == before >= 12
    if step == "settled":
        settled = {event_id for seq, event_id in ids.items() if seq not in survivors}
        assert settled
        assert not set(repeated) & settled


async def is_empty(engine: AsyncEngine) -> bool:
    return await states(engine) == {}
