"""The lane of one consumer: its deliveries wait here, and its handlers' tasks take them from here.

A lane never loses a task to a message, and never ends a delivery twice: whatever happens in an
attempt becomes an outcome, which the settlement ends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from evworker.broker.cancellation import forgive_cancellation
from evworker.workers.context import current_context
from evworker.workers.outcome import HandedBack, Paused

if TYPE_CHECKING:
    from collections.abc import Callable

    from evworker.broker import Envelope
    from evworker.broker.intake import Delivery
    from evworker.workers.context import Context
    from evworker.workers.execution import Execution
    from evworker.workers.outcome import Outcome
    from evworker.workers.settlement import Settlement
    from evworker.workers.solitude import Solitude

log = structlog.get_logger("evworker.lane")

_HANDED_BACK = HandedBack()

_DEFECT_PAUSE_S = 5.0
_QUIET_PATIENCE_S = 5.0

_LONGEST_HOLD_S = 600.0
"""Well below the 30 minutes after which the broker takes a delivery back by itself."""


class Traffic:
    """What is under way in one feed, and what its parts have been told; all of them share it."""

    def __init__(self) -> None:
        self.in_process = 0
        """Deliveries that have come and are not settled yet."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.stop_asked = asyncio.Event()
        self.closing = False
        self.switched = asyncio.Event()
        """Set when a kill switch has opened or closed, until the feed has acted on it."""
        self.probing = False
        self.quiet = asyncio.Event()
        """Set while no deliveries can come: what is handed back now does not come straight back."""

    async def fall_quiet(self) -> None:
        """Wait until what is handed back does not come straight back, though not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_PATIENCE_S):
                await self.quiet.wait()

    def begin(self) -> None:
        """A delivery has come."""
        self.in_process += 1
        self.idle.clear()

    def end(self) -> None:
        """A delivery is settled, or its channel is gone."""
        self.in_process -= 1
        if not self.in_process:
            self.idle.set()


class Lane:
    """The deliveries that wait for one consumer's handler; the prefetch bounds how many.

    `take` is asked before each attempt whether another one may start.
    """

    def __init__(
        self,
        execution: Execution,
        settlement: Settlement,
        traffic: Traffic,
        take: Callable[[], bool],
        solitude: Solitude,
    ) -> None:
        self.execution = execution
        self.consumer = execution.consumer
        self.waiting: asyncio.Queue[tuple[Delivery, Envelope]] = asyncio.Queue()
        self._settlement = settlement
        self._traffic = traffic
        self._take = take
        self._solitude = solitude

    async def work(self) -> None:
        """One task of the lane: attempt what waits, one after the other, until the feed closes."""
        while not self._traffic.closing:
            try:
                delivery, envelope = await self.waiting.get()
                await self._work_on(delivery, envelope)
            except asyncio.CancelledError:
                if self._traffic.closing:
                    raise
                forgive_cancellation()  # a handler had cancelled its own task before it returned

    async def _work_on(self, delivery: Delivery, envelope: Envelope) -> None:
        try:
            if delivery.is_live:  # else its channel died while it waited, and it will come again
                await self.attempt(delivery, envelope, hold=self._traffic.probing)
        finally:
            self._traffic.end()

    async def hand_back_waiting(self) -> None:
        """Hand back every delivery whose handler has not started."""
        while not self.waiting.empty():
            delivery, envelope = self.waiting.get_nowait()
            await self.settle(delivery, HandedBack(), envelope)
            self._traffic.end()

    async def attempt(
        self,
        delivery: Delivery,
        envelope: Envelope,
        *,
        hold: bool = False,
        alone: bool = False,
        otherwise: Outcome = _HANDED_BACK,
    ) -> None:
        """One attempt, settled; with `hold` repeated for as long as a dependency is down.

        `alone` says that it was seen to that nothing else runs. `otherwise` is how the delivery
        ends without an attempt, or after one that does not count.
        """
        if not alone:
            await self._solitude.nobody_alone()
        if self._traffic.stop_asked.is_set() or not self._take():
            if not alone:
                await self._traffic.fall_quiet()
            await self.settle(delivery, otherwise, envelope)
            return
        context = self.execution.context(delivery, envelope)
        token = current_context.set(context)
        try:
            if alone:
                outcome = await self._run(delivery, context)
            else:
                outcome = await self._attempt(delivery, context, hold=hold)
            if isinstance(outcome, Paused) and not alone:
                await self._traffic.fall_quiet()
            uncounted = isinstance(outcome, (Paused, HandedBack))
            await self.settle(delivery, otherwise if uncounted else outcome, envelope)
        except Exception:
            # Nothing a message does may cost the lane its task; the pause keeps it from spinning.
            log.exception("a defect in evworker: please report it", queue=delivery.queue)
            await asyncio.sleep(_DEFECT_PAUSE_S)
            # Handed back even in quarantine, which counts it: so that it does not go on for ever.
            await self.settle(delivery, _HANDED_BACK, envelope)
        finally:
            current_context.reset(token)

    async def _attempt(self, delivery: Delivery, context: Context, *, hold: bool) -> Outcome:
        outcome = await self._run_among_others(delivery, context)
        held_until = asyncio.get_running_loop().time() + _LONGEST_HOLD_S
        while hold and isinstance(outcome, Paused) and await self._pause(held_until):
            if not delivery.is_live:
                break
            outcome = await self._run_among_others(delivery, context)
        return outcome

    async def _run_among_others(self, delivery: Delivery, context: Context) -> Outcome:
        async with self._solitude.among_others():
            return await self._run(delivery, context)

    async def settle(self, delivery: Delivery, outcome: Outcome, envelope: Envelope | None) -> None:
        """End the delivery; returns as `Settlement.settle` does."""
        message_id = envelope.id if envelope else None
        await self._settlement.settle(delivery, outcome, message_id=message_id)

    async def _run(self, delivery: Delivery, context: Context) -> Outcome:
        """One run of the handler, and what it tells the kill switch."""
        switch = self.execution.switch
        was_closed = switch is None or switch.state == "closed"
        outcome = await self.execution.run(delivery, context)
        if switch is not None and was_closed != (switch.state == "closed"):
            self._traffic.switched.set()
            if was_closed:
                why = outcome.why if isinstance(outcome, Paused) else ""
                log.warning("kill switch open, the queue pauses", queue=delivery.queue, why=why)
            else:
                log.warning("kill switch closed, the queue goes on", queue=delivery.queue)
        return outcome

    async def _pause(self, until: float) -> bool:
        """Wait for the next probe with the message in hand; False when it should be let go.

        Handing it back for each probe would use up its delivery limit, before RabbitMQ 4.3.
        """
        if self.execution.switch is None or asyncio.get_running_loop().time() >= until:
            return False
        await self.until_probe()
        return not self._traffic.stop_asked.is_set()

    async def until_probe(self) -> None:
        """Wait for the next probe while the kill switch is open, though not beyond a stop."""
        switch, now = self.execution.switch, asyncio.get_running_loop().time()
        if switch is None or switch.state != "open":
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(switch.probe_due_s(now)):
                await self._traffic.stop_asked.wait()
        switch.probe()
