"""The worker: connects, declares, feeds the consumers of its plugins, and stops losing nothing.

::

    run():  connect ► declare ► tables ► lifespans ► feeds ready ► … stop() …
            ► intake stopped, waiting handed back ► running drained ► lifespans left ► closed
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import structlog

from evworker.broker import (
    BrokerAddress,
    BrokerError,
    BrokerRefusedError,
    ConfigurationError,
    Connection,
    DatabaseError,
    Duration,
    EvworkerError,
    Publisher,
    Topology,
    TopologyMismatchError,
    apply_topology,
    count_messages,
    events_topology,
    parse_duration,
)
from evworker.broker.backoff import backoff_s
from evworker.broker.cancellation import cancel_all
from evworker.broker.topology import DEFAULT_EXCHANGE
from evworker.workers.consumer import LARGEST_PREFETCH
from evworker.workers.feed import Feed, Shared
from evworker.workers.outcome import Counts
from evworker.workers.plugin import Plugin, check_plugins, consumers_by_queue, plan_queue
from evworker.workers.selection import selected
from evworker.workers.settlement import Settlement
from evworker.workers.solitude import Solitude

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from evworker.workers.consumer import Consumer
    from evworker.workers.database import Database

log = structlog.get_logger("evworker.worker")

DEFAULT_SHUTDOWN_TIMEOUT_S = 30.0
DEFAULT_INBOX_WINDOW = "7d"

_LIFESPAN_PATIENCE_S = 10.0
"""How long after the second stop a plugin's lifespan may still take to end."""

_BURST_CHECK_S = 0.25
_BURST_EMPTY_CHECKS = 2  # a message on its way from a retry queue is in neither for a moment


class PluginStartError(EvworkerError):
    """A plugin's lifespan raised before it yielded."""


class Worker:
    """Feeds the consumers of some plugins until told to stop.

    - `queues`, `exclude_queues`: consume only these, or all but these.
    - `concurrency`, `prefetch`: instead of what each consumer says.
    - `burst`: stop once every queue, and every queue in which its messages wait for another
      attempt, is empty, and so is the outbox if it is relayed here. `max_events`: stop after so
      many attempts.
    - `shutdown_timeout_s`: how long running handlers may take to end once it is told to stop.
    - `database`: where transactional consumers work: a URL, or an engine of SQLAlchemy's that is
      left open. `inbox_window`: how long an event is remembered there as applied; longer than the
      longest retry, and than the time until a dead letter is replayed.
    - `relay`: whether this worker publishes what is in the outbox, whoever wrote it; unless given,
      it does if it has a database.
    """

    def __init__(  # noqa: PLR0913 - the options of `evworker run`
        self,
        plugins: Iterable[Plugin],
        broker: str | BrokerAddress,
        *,
        exchange: str = DEFAULT_EXCHANGE,
        queues: Iterable[str] = (),
        exclude_queues: Iterable[str] = (),
        concurrency: int | None = None,
        prefetch: int | None = None,
        burst: bool = False,
        max_events: int | None = None,
        shutdown_timeout_s: float = DEFAULT_SHUTDOWN_TIMEOUT_S,
        database: str | AsyncEngine | None = None,
        inbox_window: Duration = DEFAULT_INBOX_WINDOW,
        relay: bool | None = None,
    ) -> None:
        """Raises ConfigurationError when this can't work, before anything is started."""
        self._plugins = tuple(plugins)
        check_plugins(self._plugins)
        _check_number("concurrency", concurrency)
        _check_number("prefetch", prefetch, LARGEST_PREFETCH)
        _check_number("max_events", max_events)
        address = BrokerAddress.parse(broker) if isinstance(broker, str) else broker
        self._exchange = exchange
        self._consumers = selected(
            consumers_by_queue(self._plugins),
            only=tuple(queues),
            without=tuple(exclude_queues),
            concurrency=concurrency,
            prefetch=prefetch,
        )
        self._burst = burst
        self._max_events = max_events
        self._shutdown_timeout_s = shutdown_timeout_s
        names = "+".join(plugin.name for plugin in self._plugins)
        self._consuming = Connection(address, name=f"evworker {names} consuming")
        self._publishing = Connection(address, name=f"evworker {names} publishing")
        self._publisher = Publisher(self._publishing, exchange=exchange)
        self._database = _database(
            database,
            [consumer for shared in self._consumers.values() for consumer in shared],
            inbox_window=inbox_window,
            broker=self._publishing,
            exchange=exchange,
            relay=relay,
        )
        self._settlement: type[Settlement] = Settlement
        self._feeds: list[Feed] = []
        self._topologies: dict[str, Topology] = {}
        self._started_up = False
        self._started = 0
        self._stop_calls = 0
        self._stop_asked = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self.counts = Counts()
        self.ready = asyncio.Event()
        self.abandoned = 0
        """After `run`: handlers that still run in threads, which nothing can stop."""

    def stop(self) -> None:
        """Stop gracefully: no new events, running handlers may end. Called again: stop at once.

        To be called in the event loop, as from a signal handler.
        """
        self._stop_calls += 1
        if self._stop_calls > 1:
            self._stop_at_once.set()
        self._stop_taking()

    def _stop_taking(self) -> None:
        self._stop_asked.set()
        for feed in self._feeds:
            feed.start_no_more()

    async def run(self) -> None:
        """Work until `stop`; returns once everything is closed.

        Waits for a broker and a database that are not there yet. Raises BrokerRefusedError,
        TopologyMismatchError, DatabaseRefusedError and SchemaError, which waiting can't mend, and
        PluginStartError.
        """
        working = asyncio.create_task(self._work(), name="evworker worker")
        hurrying = asyncio.create_task(self._hurry(working))
        try:
            await asyncio.wait([working, hurrying], return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not working.cancelled():
                await working
        finally:
            await cancel_all(hurrying, working, timeout_s=_LIFESPAN_PATIENCE_S)
            if self._database is not None:
                await self._database.close()
            await asyncio.gather(
                self._publisher.close(), self._publishing.close(), self._consuming.close()
            )
        log.info(
            "stopped",
            handled=self.counts.handled,
            duplicates=self.counts.duplicates,
            retried=self.counts.retried,
            discarded=self.counts.discarded,
            dead_lettered=self.counts.dead_lettered,
            handed_back=self.counts.handed_back,
        )

    async def _work(self) -> None:
        await self._connect()
        if self._database is not None:
            await self._database.open()
        async with AsyncExitStack() as lifespans:
            states = {plugin.name: await _entered(plugin, lifespans) for plugin in self._plugins}
            self._started_up = True
            if not self._stop_asked.is_set():
                await self._feed(states)

    async def _hurry(self, working: asyncio.Task[None]) -> None:
        """End what would outlast a stop: a start that is not over, a lifespan that never ends."""
        await self._stop_asked.wait()
        if self._started_up:
            await self._stop_at_once.wait()
            await asyncio.sleep(_LIFESPAN_PATIENCE_S)
            log.error("a lifespan does not end, leaving it behind")
        await cancel_all(working, timeout_s=_LIFESPAN_PATIENCE_S)

    async def _connect(self) -> None:
        await self._consuming.open(wait_s=None)
        await self._publishing.open(wait_s=None)
        events = events_topology(self._exchange)
        self._topologies = {
            queue: events
            + plan_queue(queue, consumers, exchange=self._exchange, version=self._consuming.version)
            for queue, consumers in self._consumers.items()
        }
        attempt = 0
        while True:
            try:
                for topology in self._topologies.values():
                    await apply_topology(self._publishing, topology)
                await self._publisher.open()
            except (BrokerRefusedError, TopologyMismatchError):
                raise
            except BrokerError as error:
                attempt += 1
                log.warning("can't declare, trying again", error=str(error), attempt=attempt)
                await asyncio.sleep(backoff_s(attempt))
            else:
                return

    async def _feed(self, states: dict[str, Any]) -> None:
        shared = Shared(
            connection=self._consuming,
            publisher=self._publisher,
            inbox=self._database.inbox if self._database else None,
            counts=self.counts,
            take=self._take,
            solitude=Solitude(),
            settlement=self._settlement,
        )
        self._feeds = [
            Feed(queue, consumers, topology=self._topologies[queue], states=states, shared=shared)
            for queue, consumers in self._consumers.items()
        ]
        feeding = [
            asyncio.create_task(feed.run(), name=f"evworker {feed.queue}") for feed in self._feeds
        ]
        watching = [asyncio.create_task(self._announce_ready())]
        if self._burst:
            watching.append(asyncio.create_task(self._stop_when_empty()))
        asked = asyncio.create_task(self._stop_asked.wait())
        # Not among the feeding, for it goes on while handlers that still run may need it.
        upkeep = [self._database.start()] if self._database else []
        try:
            await asyncio.wait([asked, *feeding, *upkeep], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop_taking()
            ended = [task for task in (*feeding, *upkeep) if task.done()]
            failed = [task for task in ended if not task.cancelled()]
            await cancel_all(asked, *watching, *feeding)
            await self._drain()
        for task in failed:
            await task

    def _take(self) -> bool:
        """Whether another attempt may start."""
        if self._max_events is not None:
            if self._started >= self._max_events:
                return False
            if self._started + 1 == self._max_events:
                self._stop_taking()
        self._started += 1
        return True

    async def _announce_ready(self) -> None:
        for feed in self._feeds:
            await feed.subscribed.wait()
        self.ready.set()
        log.info(
            "ready",
            broker=str(self._consuming.address),
            version=str(self._consuming.version),
            exchange=self._exchange,
            consumers=[
                f"{consumer.name} ({', '.join(consumer.patterns)} from {consumer.queue})"
                for feed in self._feeds
                for consumer in feed.consumers
            ],
        )

    async def _stop_when_empty(self) -> None:
        await self.ready.wait()
        empty_checks = 0
        while empty_checks < _BURST_EMPTY_CHECKS:
            await asyncio.sleep(_BURST_CHECK_S)
            try:
                empty_checks = empty_checks + 1 if await self._is_empty() else 0
            except (BrokerError, DatabaseError):
                empty_checks = 0  # a connection was lost; the next look waits until it is back
        self._stop_taking()

    async def _is_empty(self) -> bool:
        for feed in self._feeds:
            for queue in feed.queues_to_drain:
                if feed.in_process or await count_messages(self._publishing, queue):
                    return False
        if self._database is not None and not await self._database.is_relayed():
            return False
        return not any(feed.in_process for feed in self._feeds)

    async def _drain(self) -> None:
        log.debug("stopping", in_process=self._in_process)
        draining = asyncio.create_task(self._drain_feeds())
        at_once = asyncio.create_task(self._stop_at_once.wait())
        try:
            await asyncio.wait(
                [draining, at_once],
                timeout=self._shutdown_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._in_process:
                log.warning(
                    "stopping at once, handing back what still runs", in_process=self._in_process
                )
        finally:
            await cancel_all(draining, at_once)
            await asyncio.gather(*(feed.close() for feed in self._feeds))
            self.abandoned = sum(feed.running_threads for feed in self._feeds)

    async def _drain_feeds(self) -> None:
        stops = (feed.stop_intake() for feed in self._feeds)
        for failure in await asyncio.gather(*stops, return_exceptions=True):
            if failure is not None:
                log.error("a defect in evworker: please report it", exc_info=failure)
        await asyncio.gather(*(feed.drained() for feed in self._feeds))

    @property
    def _in_process(self) -> int:
        return sum(feed.in_process for feed in self._feeds)


def _check_number(name: str, number: int | None, largest: int | None = None) -> None:
    if number is not None and not (number >= 1 and (largest is None or number <= largest)):
        allowed = "1 or more" if largest is None else f"1 to {largest}"
        raise ConfigurationError(f"{name}={number} must be {allowed}")


async def _entered(plugin: Plugin, lifespans: AsyncExitStack) -> Any:
    if plugin.lifespan is None:
        return None
    try:
        return await lifespans.enter_async_context(plugin.lifespan())
    except Exception as error:
        raise PluginStartError(
            f"plugin {plugin.name!r} could not start: {type(error).__name__}: {error}"
        ) from error


def _database(
    database: str | AsyncEngine | None,
    consumers: list[Consumer],
    *,
    inbox_window: Duration,
    broker: Connection,
    exchange: str,
    relay: bool | None,
) -> Database | None:
    if database is None:
        if names := [consumer.name for consumer in consumers if consumer.transactional]:
            raise ConfigurationError(
                f"the consumer {names[0]!r} is transactional and this worker has no database; "
                "give it one, Worker(…, database=…) or evworker run --database-url"
            )
        if relay:
            raise ConfigurationError("relay=True needs a database, in which the outbox is")
        return None
    try:
        from evworker.workers.database import Database  # noqa: PLC0415 - it brings SQLAlchemy
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "a worker with a database needs SQLAlchemy and a driver: "
            "pip install 'evworker[postgres]', or evworker[mysql], or evworker[sqlite]"
        ) from error
    return Database(
        database,
        consumers,
        window_s=parse_duration(inbox_window),
        broker=broker,
        exchange=exchange,
        relay=relay is not False,
    )
