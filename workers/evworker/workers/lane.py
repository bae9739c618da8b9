"""The lane of one consumer: its deliveries wait here, and its handlers' tasks take them from here.

A lane never loses a task to a message, and never ends a delivery twice: whatever happens in an
attempt becomes an outcome, which the settlement ends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog

from evworker.broker.cancellation import forgive_cancellation, is_cancelled
from evworker.workers.context import current_context
from evworker.workers.outcome import HandedBack, Outcome, Paused
from evworker.workers.waiting import WaitingLine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from evworker.broker import Envelope
    from evworker.broker.delivery import Delivery
    from evworker.workers.execution import Execution
    from evworker.workers.killswitch import SwitchState
    from evworker.workers.settlement import Settlement
    from evworker.workers.solitude import Solitude

log = structlog.get_logger("evworker.lane")

_HANDED_BACK = HandedBack()

_DEFECT_PAUSE_S = 5.0

# Handlers that don't suspend would get through all that waits in one turn of the loop, and
# meanwhile no ack would go out, no heartbeat, and no signal would be heard.
_TURN_S = 0.01

_QUIET_PATIENCE_S = 5.0


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
        """Set when a kill switch has closed, opened, or stayed open, until the feed has acted."""
        self.quiet = asyncio.Event()
        """Set while no deliveries can come: what is handed back now does not come straight back."""

    async def fall_quiet(self) -> None:
        """Wait until what is handed back does not come straight back, though not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_PATIENCE_S):
                await self.quiet.wait()

    def begin(self) -> None:
        """A delivery has come."""
        if not self.in_process:
            self.idle.clear()
        self.in_process += 1

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
        self.waiting: WaitingLine[tuple[Delivery, Envelope]] = WaitingLine()
        self._settlement = settlement
        self._traffic = traffic
        self._take = take
        self._solitude = solitude
        self._loop = asyncio.get_running_loop()
        self._turn_ends_at = 0.0
        """When others are to come to their turn, by the loop's clock; all its tasks share it."""
        self._is_open = False
        """Whether its kill switch was, when that was told last."""

    async def work(self) -> None:
        """One task of the lane: attempt what waits, one after the other, until the feed closes."""
        items = self.waiting.items
        while not self._traffic.closing:
            try:
                delivery, envelope = items.popleft() if items else await self.waiting.take()
                try:
                    if delivery.is_live:  # else its channel died meanwhile, and it will come again
                        await self.attempt(delivery, envelope)
                finally:
                    self._traffic.end()
                if (turn_ends_at := self._turn_ends_at) <= self._loop.time():
                    await asyncio.sleep(0)
                    if self._turn_ends_at == turn_ends_at:  # the first of them to go on
                        self._turn_ends_at = self._loop.time() + _TURN_S
            except asyncio.CancelledError:
                if self._traffic.closing:
                    raise
                forgive_cancellation()  # a handler had cancelled its own task before it returned

    async def attempt(
        self,
        delivery: Delivery,
        envelope: Envelope,
        *,
        alone: bool = False,
        uncounted: Outcome | None = None,
    ) -> None:
        """One attempt, settled.

        `alone` says that it was seen to that nothing else runs. `uncounted` is how the delivery
        ends without an attempt, or after one that does not count, if not handed back.
        """
        if not alone and self._solitude.is_wanted:
            await self._undisturbed(self._solitude.nobody_alone)
        if self._traffic.stop_asked.is_set() or not self._take():
            if not alone:
                await self._undisturbed(self._traffic.fall_quiet)
            await self._end(delivery, uncounted or _HANDED_BACK, envelope, alone=alone)
            return
        context = self.execution.context(delivery, envelope)
        token = current_context.set(context)
        if not alone:
            self._solitude.begin_among_others()
        try:
            try:
                begun = self.execution.begin(delivery, context)
                outcome = begun if isinstance(begun, Outcome) else await begun
            finally:
                if not alone:
                    self._solitude.end_among_others()
            if self.execution.switch is not None:
                self._tell_switch(self.execution.switch, delivery, outcome)
            if not is_cancelled(self._loop) and self._settlement.settle_at_once(delivery, outcome):
                return
            if uncounted is not None and isinstance(outcome, (Paused, HandedBack)):
                outcome = uncounted
            await self._end(delivery, outcome, envelope, alone=alone)
        except Exception:
            # Nothing a message does may cost the lane its task; the pause keeps it from spinning.
            log.exception("a defect in evworker: please report it", queue=delivery.queue)
            await asyncio.sleep(_DEFECT_PAUSE_S)
            # Handed back even in quarantine, which counts it: so that it does not go on for ever.
            await self._end(delivery, _HANDED_BACK, envelope, alone=alone)
        finally:
            current_context.reset(token)

    async def _end(
        self, delivery: Delivery, outcome: Outcome, envelope: Envelope, *, alone: bool
    ) -> None:
        if isinstance(outcome, Paused) and not alone:
            await self._undisturbed(self._traffic.fall_quiet)
        await self._undisturbed(partial(self.settle, delivery, outcome, envelope))

    async def _undisturbed(self, do: Callable[[], Awaitable[None]]) -> None:
        """Do it, if need be again, though a handler has cancelled the task that it ran in."""
        while True:
            try:
                if is_cancelled(self._loop) and not self._traffic.closing:
                    await asyncio.sleep(0)  # it comes now, and not in the middle of a publish
                    forgive_cancellation()
                await do()
                return
            except asyncio.CancelledError:
                if self._traffic.closing:
                    raise
                forgive_cancellation()

    async def settle(self, delivery: Delivery, outcome: Outcome, envelope: Envelope | None) -> None:
        """End the delivery; returns as `Settlement.settle` does."""
        message_id = envelope.id if envelope else None
        await self._settlement.settle(delivery, outcome, message_id=message_id)

    def _tell_switch(self, switch: SwitchState, delivery: Delivery, outcome: Outcome) -> None:
        """Have the feed act if the attempt has opened the kill switch, or closed it."""
        if self._is_open != (switch.state != "closed"):
            self._is_open = not self._is_open
            self._traffic.switched.set()
            if self._is_open:
                why = outcome.why if isinstance(outcome, Paused) else ""
                log.warning("kill switch open, the queue pauses", queue=delivery.queue, why=why)
            else:
                log.warning("kill switch closed, the queue goes on", queue=delivery.queue)
        elif isinstance(outcome, Paused):
            self._traffic.switched.set()
