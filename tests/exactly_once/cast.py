"""Who takes part: producers in this process, relays and workers as processes of their own.

The processes are the real command; they are killed with -9 and started again.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from evworker.broker import Outbox
from tests.exactly_once.shop import OrderTaken, orders
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ROLLED_BACK_SHARE = 0.2
PAUSE_S = 0.2
"""Between two orders of one producer: the disturbances are to fall in between them."""

ENDING_S = 60.0


class Member:
    """One process that is started again whenever it has been killed."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._arguments = arguments
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self.log = log
        self._process: asyncio.subprocess.Process | None = None
        self._told_before = 0
        """Bytes of the log that are of the processes before this one."""

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._told_before = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "evworker", *self._arguments),
                cwd=self.log.parent,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def die(self) -> None:
        """kill -9, and a new process in its place."""
        assert self._process is not None
        ended_by_itself = self._process.returncode
        assert ended_by_itself is None, self.log.read_text()[-4_000:]
        self._process.kill()
        await self._process.wait()
        await self.start()

    async def stop(self) -> int:
        """SIGTERM, as an operator would; returns its exit code."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            # One that was killed a moment ago does not hear it yet.
            await eventually(self._is_ready, f"{self.log.name} is ready", timeout_s=ENDING_S)
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self._process.wait(), ENDING_S)
        except TimeoutError:
            told = self.log.read_text()[-4_000:]
            raise AssertionError(f"{self.log.name} does not stop:\n{told}") from None

    def _is_ready(self) -> bool:
        return re.search(rb"\bready\b", self.log.read_bytes()[self._told_before :]) is not None

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Producer:
    """Takes the orders of some customers, one after the other, and takes some of them back."""

    def __init__(self, number: int, engine: AsyncEngine, seed: int) -> None:
        self._engine = engine
        self._dice = random.Random(f"{seed} {number}")
        self._outbox = Outbox(source="shop")
        self._customers = [f"customer {number}.{one}" for one in range(3)]
        self._taken = 0
        self._name = number

    async def take(self, at_least: int, calm: asyncio.Event) -> None:
        """Take so many orders, and then more until nothing is disturbed any more."""
        while self._taken < at_least or not calm.is_set():
            self._taken += 1
            customer = self._dice.choice(self._customers)
            await self._take(f"order {self._name}.{self._taken}", customer)
            await asyncio.sleep(self._dice.uniform(0, 2 * PAUSE_S))

    async def _take(self, order_id: str, customer: str) -> None:
        """One order. Whether a commit that failed took effect is not asked: the table will tell."""
        try:
            async with AsyncSession(self._engine) as session:
                await session.execute(
                    sa.insert(orders).values(order_id=order_id, customer=customer)
                )
                event = OrderTaken(order_id=order_id, customer=customer, number=self._taken)
                await self._outbox.add(session, event, key=customer)
                if self._dice.random() < ROLLED_BACK_SHARE:
                    await session.rollback()
                else:
                    await session.commit()
        except (DBAPIError, OSError):
            await asyncio.sleep(0.2)  # the database restarts; this order is lost or it is not
