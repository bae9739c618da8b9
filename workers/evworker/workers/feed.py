"""The feed of one queue: takes its deliveries, runs their handlers, has them settled.

::

    intake ──receive──► read, route ──► lane of a consumer ──► execution ──► settlement
                             ├─ undecodable, unwanted ─────────────────────────►┤
                             └─ came back too often ► quarantine ► execution ──►┘

Handlers run in the lane's own tasks, `concurrency` of them for each consumer, which outlive the
channel: when that dies, running handlers go on and only their acks are void. While a kill switch of
one of its consumers is open, nothing is taken; then one message at a time, until one succeeds.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from evworker.broker import (
    BrokerError,
    BrokerRefusedError,
    Envelope,
    TopologyMismatchError,
    dead_letter_queue,
)
from evworker.broker.backoff import backoff_s
from evworker.broker.cancellation import cancel_all
from evworker.broker.declare import apply_topology
from evworker.broker.delivery import Delivery
from evworker.broker.intake import Intake
from evworker.broker.topology import quarantine_queue
from evworker.workers.consumer import LARGEST_PREFETCH
from evworker.workers.execution import CrashedError, Execution, UnwantedError, failure_of
from evworker.workers.lane import Lane, Traffic
from evworker.workers.outcome import DeadLettered, HandedBack, Paused, Quarantined
from evworker.workers.quarantine import Quarantine, is_suspect, would_be_suspect
from evworker.workers.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from evworker.broker import Connection, Publisher, Topology
    from evworker.workers.consumer import Consumer
    from evworker.workers.inbox import Inbox
    from evworker.workers.killswitch import State, SwitchState
    from evworker.workers.outcome import Counts, Outcome
    from evworker.workers.solitude import Solitude

log = structlog.get_logger("evworker.feed")

_CANCEL_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What all feeds of a worker share."""

    connection: Connection
    """The one to consume on."""
    publisher: Publisher
    inbox: Inbox | None
    """Of transactional consumers."""
    counts: Counts
    take: Callable[[], bool]
    """Asked before each attempt whether another one may start."""
    solitude: Solitude
    """Through which every attempt passes, since a message from a quarantine runs alone."""
    settlement: type[Settlement] = Settlement
    """What ends the deliveries of each feed."""


class Feed:
    """Feeds the consumers of one queue. `states` has what each plugin's lifespan yielded."""

    def __init__(
        self,
        queue: str,
        consumers: Iterable[Consumer],
        *,
        topology: Topology,
        states: Mapping[str, Any],
        shared: Shared,
    ) -> None:
        self.queue = queue
        self.consumers = tuple(consumers)
        self.subscribed = asyncio.Event()
        self._topology = topology
        self._connection = shared.connection
        self._take = shared.take
        self._traffic = Traffic()
        declared = {planned.name: planned for planned in topology.queues}
        self._counts_returns = declared[queue].arguments["x-queue-type"] == "quorum"
        self._settlement = shared.settlement(
            declared[queue],
            dead_letters=declared[dead_letter_queue(queue)],
            quarantine=declared[quarantine_queue(queue)],
            delays_s={wait_s for consumer in self.consumers for wait_s in consumer.retry.waits_s},
            publisher=shared.publisher,
            connection=shared.connection,
            counts=shared.counts,
        )
        self._lanes = [
            Lane(
                Execution(
                    consumer,
                    state=states[consumer.plugin],
                    publisher=shared.publisher,
                    inbox=shared.inbox,
                    stop_asked=self._traffic.stop_asked,
                ),
                self._settlement,
                self._traffic,
                shared.take,
                shared.solitude,
            )
            for consumer in self.consumers
        ]
        self._quarantine = Quarantine(
            quarantine_queue(queue),
            connection=shared.connection,
            solitude=shared.solitude,
            stop_asked=self._traffic.stop_asked,
            ready=self._until_probe,
            attempt=self._attempt_alone,
        )
        self._intake: Intake | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_process(self) -> int:
        """Deliveries that have come and are not settled yet."""
        return self._traffic.in_process

    @property
    def running_threads(self) -> int:
        """Handlers that run in threads at this moment."""
        return sum(lane.execution.running_threads for lane in self._lanes)

    @property
    def queues_to_drain(self) -> list[str]:
        """The queue, and those in which its messages wait for another attempt."""
        waiting = (queue.name for queue in self._settlement.retry_queues.values())
        return [self.queue, self._quarantine.queue, *waiting]

    async def run(self) -> None:
        """Stay subscribed until stopped. Raises what no further attempt can mend."""
        for lane in self._lanes:
            for _ in range(lane.consumer.concurrency):
                self._spawn(lane.work())
        self._spawn(self._quarantine.run())
        attempt = 0
        while True:
            await self._until_probe()
            if self._traffic.stop_asked.is_set():
                return
            self._traffic.switched.clear()
            try:
                intake = await self._subscribe(again=attempt > 0)
            except (BrokerRefusedError, TopologyMismatchError):
                raise
            except BrokerError as error:
                attempt += 1
                delay_s = backoff_s(attempt)
                log.warning(
                    "can't consume, trying again",
                    queue=self.queue,
                    error=str(error),
                    attempt=attempt,
                    delay_s=round(delay_s, 1),
                )
                await asyncio.sleep(delay_s)
                continue
            if attempt:
                log.info("consuming again", queue=self.queue)
            self.subscribed.set()
            attempt = int(await self._is_lost(intake))

    async def _subscribe(self, *, again: bool) -> Intake:
        if again:
            await apply_topology(self._connection, self._topology)
        self._traffic.quiet.clear()
        prefetch = sum(consumer.prefetch for consumer in self.consumers)
        prefetch = 1 if self._switches("open", "probing") else min(prefetch, LARGEST_PREFETCH)
        try:
            if again or self._intake is None:
                self._intake = await Intake.open(
                    self._connection, self.queue, prefetch=prefetch, receive=self._receive
                )
            else:
                await self._intake.start(prefetch=prefetch)
        except BaseException:
            self._traffic.quiet.set()
            raise
        return self._intake

    async def _until_probe(self) -> None:
        """Wait while a kill switch is open, though not beyond a stop."""
        while (opened := self._switches("open")) and not self._traffic.stop_asked.is_set():
            now = asyncio.get_running_loop().time()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(switch.probe_due_s(now) for switch in opened)):
                    await self._traffic.stop_asked.wait()
            for switch in opened:
                switch.probe()

    def _switches(self, *states: State) -> list[SwitchState]:
        switches = (lane.execution.switch for lane in self._lanes)
        return [switch for switch in switches if switch is not None and switch.state in states]

    async def _is_lost(self, intake: Intake) -> bool:
        """Wait until a subscription ends; False when it was ended here: a stop, a kill switch."""
        ended = asyncio.ensure_future(intake.ended())
        switched = asyncio.ensure_future(self._traffic.switched.wait())
        stopped = asyncio.ensure_future(self._traffic.stop_asked.wait())
        try:
            await asyncio.wait([ended, switched, stopped], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return False
            lost = ended.done()
            if lost:
                log.warning("consumer lost, coming back", queue=self.queue, reason=ended.result())
                await intake.close()
            else:
                await intake.stop()
            self._traffic.quiet.set()
            if lost or self._switches("open", "probing"):
                await self._hand_back_waiting(unsuspected=True)
            return lost
        finally:
            await cancel_all(ended, switched, stopped)

    def start_no_more(self) -> None:
        """From now on every delivery whose handler has not started is handed back."""
        self._traffic.stop_asked.set()

    async def stop_intake(self) -> None:
        """Take no more deliveries, and hand back those whose handler has not started."""
        self.start_no_more()
        if self._intake is not None:
            await self._intake.stop()
        self._traffic.quiet.set()
        await self._hand_back_waiting()

    async def _hand_back_waiting(self, *, unsuspected: bool = False) -> None:
        """Hand back what no handler has; with `unsuspected` so that this makes no suspect of it."""
        for lane in self._lanes:
            while lane.waiting.items:
                delivery, envelope = lane.waiting.items.popleft()
                if unsuspected and would_be_suspect(delivery, counted=self._counts_returns):
                    self._spawn(self._refuse(delivery, Paused()))
                else:
                    await lane.settle(delivery, HandedBack(), envelope)
                    self._traffic.end()

    async def drained(self) -> None:
        """Wait until everything that was taken is settled."""
        await self._traffic.idle.wait()

    async def close(self) -> None:
        """Stop at once: cancel what still runs and hand it back, then close the channels.

        A handler that does not obey its cancellation is left behind after some seconds.
        """
        self._traffic.stop_asked.set()
        self._traffic.closing = True
        for lane in self._lanes:
            lane.execution.stopped = True
        if left := await cancel_all(*self._tasks, timeout_s=_CANCEL_PATIENCE_S):
            log.error("handlers ignore their cancellation", queue=self.queue, handlers=left)
        if self._intake is not None:
            await self._intake.close()
        await self._quarantine.close()
        for lane in self._lanes:
            lane.execution.close()

    def _receive(self, delivery: Delivery) -> None:
        self._traffic.begin()
        if is_suspect(delivery, counted=self._counts_returns):
            self._spawn(self._refuse(delivery, Quarantined(delivery.returns)))
        else:
            routed = self._route(delivery)
            if isinstance(routed, DeadLettered):
                self._spawn(self._refuse(delivery, routed))
            else:
                lane, envelope = routed
                lane.waiting.put((delivery, envelope))

    def _route(self, delivery: Delivery) -> tuple[Lane, Envelope] | DeadLettered:
        """The lane of the consumer that wants the message, and the message, read."""
        try:
            envelope = delivery.envelope()
        except Exception as error:  # noqa: BLE001 - whatever bytes can do, they do to one message
            return DeadLettered(failure_of(delivery, "undecodable", error))
        for lane in self._lanes:
            if lane.consumer.wants(envelope.topic):
                return lane, envelope
        wanted = ", ".join(pattern for consumer in self.consumers for pattern in consumer.patterns)
        unwanted = UnwantedError(
            f"no consumer of {self.queue!r} wants {envelope.topic!r}; they want {wanted}"
        )
        return DeadLettered(failure_of(delivery, "unwanted", unwanted), envelope)

    async def _refuse(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle what no handler is to see."""
        envelope = outcome.envelope if isinstance(outcome, DeadLettered) else None
        if isinstance(outcome, DeadLettered) and not self._take():
            await self._traffic.fall_quiet()
            outcome = HandedBack()
        known = {"event_id": envelope.id, "topic": envelope.topic} if envelope else {}
        try:
            with structlog.contextvars.bound_contextvars(queue=self.queue, **known):
                message_id = envelope.id if envelope else None
                await self._settlement.settle(delivery, outcome, message_id=message_id)
        finally:
            self._traffic.end()

    async def _attempt_alone(self, delivery: Delivery, crashes: int) -> None:
        """Run a message of the quarantine, or bury it when it has killed enough workers."""
        self._traffic.begin()
        routed = self._route(delivery)
        if isinstance(routed, DeadLettered):
            await self._refuse(delivery, routed)
            return
        lane, envelope = routed
        if crashes >= lane.consumer.crash_limit:
            crashed = CrashedError(
                f"its worker died {crashes} times while it ran alone, after it had come "
                f"back unsettled to {self.queue!r} before"
            )
            failure = failure_of(delivery, "crashed", crashed, consumer=lane.consumer.name)
            await self._refuse(delivery, DeadLettered(failure, envelope))
            return
        try:
            # Not handed back, if it comes to that: its queue would count it as a crash.
            await lane.attempt(delivery, envelope, alone=True, uncounted=Quarantined(crashes))
        finally:
            self._traffic.end()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a defect in evworker: please report it", queue=self.queue, exc_info=error)
