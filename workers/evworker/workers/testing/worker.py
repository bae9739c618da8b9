"""The test worker: the real one in the test's own event loop, and all that it did.

::

    publish ──► settled: nothing runs, nothing is on its way, nothing is left in the outbox
                   │  where only waits are left, their time passes at once
                   └► dead letters that the test was not told of: the handler's own error
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evworker.broker import ConfigurationError, Connection, Envelope, Event, Publisher
from evworker.broker.embedded import EmbeddedBroker
from evworker.workers.plugin import Plugin, plan_topology
from evworker.workers.testing.brokers import OwnBroker, SharedBroker, Tap, open_broker, remove
from evworker.workers.testing.ledger import Ledger
from evworker.workers.testing.raising import NotSettledError, raisable
from evworker.workers.testing.seen import Seen
from evworker.workers.testing.watching import Crashes, WatchedWorker, watched_plugin

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from evworker.workers.testing.databases import Fresh, Tables

DEFAULT_TIMEOUT_S = 5.0

_SOURCE = "test"
_EAGER_LOOKS = 50
_LOOK_AGAIN_S = 0.001
_LAST_LOOK_S = 0.5


class TestWorker(Seen):
    """A worker of these plugins, for as long as its block lasts, and a way in.

    ::

        async with TestWorker(billing) as worker:
            await worker.publish(OrderPlaced(order_id="42"))
            assert worker.published.of(PaymentProcessed) == [PaymentProcessed(order_id="42")]

    It is the real worker, in the event loop of the test. Its broker is an embedded one of its own,
    where no retry is waited for. With `broker`, a URL, or pytest's ``--evworker-broker``, it is
    that one, with an exchange and queues of the test's own, which are deleted in the end.

    The database is an SQLite file of its own, if any consumer is transactional or there are
    `tables`: SQLAlchemy's MetaData, or a function that is given the engine and makes them. Or it
    is `database`: a URL, an engine, or a function that returns a context manager of either.

    `timeout_s` is how long `settled` waits.
    """

    __test__ = False

    def __init__(
        self,
        *plugins: Plugin,
        broker: str | None = None,
        database: str | AsyncEngine | Fresh | None = None,
        tables: Tables | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._plugins = plugins
        self._url = broker or SharedBroker.chosen_url
        self._database = database
        self._tables = tables
        self._timeout_s = timeout_s
        self._states: dict[Plugin, Any] = {}
        self._crashes = Crashes()
        self._twice = self._reorder = self._is_unsettled = False
        self._stack = AsyncExitStack()
        self._engine: AsyncEngine | None = None
        self._broker: OwnBroker | SharedBroker
        self._ledger: Ledger
        self._publisher: Publisher
        self._tap: Tap
        self._worker: WatchedWorker | None = None
        self._running: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"<TestWorker {'+'.join(plugin.name for plugin in self._plugins)}>"

    # Its life

    async def __aenter__(self) -> Self:
        """Raises what `Worker.run` raises, if it can't start."""
        async with AsyncExitStack() as stack:
            self._broker = await stack.enter_async_context(open_broker(self._url))
            connection = await stack.enter_async_context(
                Connection(self._broker.url, name="evworker test")
            )
            self._publisher = await stack.enter_async_context(
                Publisher(connection, exchange=self._broker.exchange, source=_SOURCE)
            )
            await self._listen(connection, stack)
            await self._open_database(stack)
            worker = self._worker = WatchedWorker(
                self._watched(),
                self._broker.url,
                self._ledger,
                self._crashes,
                exchange=self._broker.exchange,
                database=self._engine,
            )
            self._running = asyncio.create_task(worker.run(), name="evworker test worker")
            stack.push_async_callback(self._stop, worker)
            ready = asyncio.create_task(worker.ready.wait())
            await asyncio.wait([ready, self._running], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if self._running.done():
                await self._running
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Settle what is not, unless the test has failed or knows that it can't be; then stop."""
        __tracebackhide__ = True
        async with self._stack:
            if error is None and not self._is_unsettled:
                await self.settled()
                self._nothing_is_due()

    async def _listen(self, connection: Connection, stack: AsyncExitStack) -> None:
        broker = self._broker
        consumers = [consumer for plugin in self._plugins for consumer in plugin.consumers]
        self._ledger = Ledger(consumers, prefix=broker.prefix)
        self._tap = Tap(connection, exchange=broker.exchange, prefix=broker.prefix)
        if isinstance(broker, SharedBroker):
            stack.push_async_callback(self._clean_up, connection)
        await self._tap.open(pattern for one in consumers for pattern in one.patterns)

    def _watched(self) -> list[Plugin]:
        return [
            watched_plugin(
                plugin,
                self._ledger,
                self._crashes,
                self._states,
                prefix=self._broker.prefix,
                shortened=self._broker.shortens_waits,
            )
            for plugin in self._plugins
        ]

    async def _open_database(self, stack: AsyncExitStack) -> None:
        consumers = (consumer for plugin in self._plugins for consumer in plugin.consumers)
        if (
            self._database is None
            and self._tables is None
            and not any(consumer.transactional for consumer in consumers)
        ):
            return
        from evworker.workers.testing.databases import open_database  # noqa: PLC0415 - SQLAlchemy

        self._engine = await stack.enter_async_context(open_database(self._database, self._tables))

    async def _stop(self, worker: WatchedWorker) -> None:
        worker.stop()
        if worker.in_process:
            worker.stop()  # what hangs is not waited for
        await asyncio.wait([self._running])
        if not self._running.cancelled():
            self._running.exception()  # whoever had to know was told

    async def _clean_up(self, connection: Connection) -> None:
        planned = plan_topology(
            self._watched(), exchange=self._broker.exchange, version=connection.version
        )
        queues = {self._tap.queue, *(queue.name for queue in planned.queues)}
        if self._worker is not None:
            queues.update(self._worker.queues)
        await remove(connection, self._broker.exchange, queues)

    # What a test does

    async def publish(
        self,
        event: Event | Envelope,
        *,
        key: str | None = None,
        id: str | None = None,
        priority: int | None = None,
        headers: Mapping[str, str | int | float | bool | None] | None = None,
        settle: bool = True,
    ) -> Envelope:
        """Publish an event as any producer would, and wait until the whole cascade is settled.

        With `settle` False it returns once the broker has the event. Raises what `settled` raises.
        """
        __tracebackhide__ = True
        envelope = self._wrapped(event, key=key, id=id)
        await self._send([envelope], priority, headers)
        if settle:
            await self.settled()
        return envelope

    async def publish_many(
        self, events: Iterable[Event | Envelope], *, settle: bool = True
    ) -> list[Envelope]:
        """The same for several events at once, which get into each queue in this order."""
        __tracebackhide__ = True
        envelopes = [self._wrapped(event) for event in events]
        await self._send(envelopes)
        if settle:
            await self.settled()
        return envelopes

    async def settled(self, *, timeout_s: float | None = None, raises: bool = True) -> None:
        """Wait until each event has come to its end at each consumer, and all that it caused.

        Raises the error of each handler whose event became a dead letter, once; an ExceptionGroup
        if there are several. With `raises` False they are only in `dead_letters`. Raises
        NotSettledError after `timeout_s` seconds, and what ends the worker.
        """
        __tracebackhide__ = True
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        looks = 0
        self._is_unsettled = False
        while not await self._is_settled(until):
            if self._running.done():
                await self._running
                raise NotSettledError(f"the worker has stopped\n\n{self.story}")
            if loop.time() > until:
                await self._tap.drain(self._ledger, loop.time() + _LAST_LOOK_S)
                self._is_unsettled = True
                raise NotSettledError(f"not settled within {timeout_s:g} s\n\n{self.story}")
            looks += 1
            await asyncio.sleep(0 if looks < _EAGER_LOOKS else _LOOK_AGAIN_S)
        told = self._ledger.take_untold()
        if raises and told:
            errors = [raisable(record) for record in told]
            if len(errors) == 1:
                raise errors[0]
            raise ExceptionGroup(f"{len(errors)} dead letters", errors)

    async def _is_settled(self, until: float) -> bool:
        worker, broker, ledger = self._at_work, self._broker, self._ledger
        if worker.in_process or not broker.is_quiet(worker, ledger):
            return False
        moves = broker.moves(), ledger.ends
        delayed = await self._first_delayed()  # before it is due, so that it is not missed then
        if not await worker.is_relayed():
            worker.wake_relay()
            return False
        if not await self._tap.drain(ledger, until):
            return False
        # What the relay has published since the first look has moved, or is there to be seen.
        if worker.in_process or not broker.is_quiet(worker, ledger):
            return False
        if moves != (broker.moves(), ledger.ends) or broker.skip_wait(worker):
            return False
        if delayed is not None:
            from evworker.workers.testing.databases import skip_delay  # noqa: PLC0415 - SQLAlchemy

            await skip_delay(self.engine, delayed)
        return delayed is None

    async def _first_delayed(self) -> datetime | None:
        if self._engine is None:
            return None
        from evworker.workers.testing.databases import first_delayed  # noqa: PLC0415 - SQLAlchemy

        return await first_delayed(self._engine)

    @property
    def _at_work(self) -> WatchedWorker:
        if self._worker is None:
            raise ConfigurationError(
                f"{self!r} is not at work: use it as `async with TestWorker(…)`"
            )
        return self._worker

    def _wrapped(
        self, event: Event | Envelope, *, key: str | None = None, id: str | None = None
    ) -> Envelope:
        _ = self._at_work
        if isinstance(event, Envelope):
            return event
        self._ledger.knows(event)
        return Envelope.wrap(event, source=_SOURCE, key=key, id=id)

    async def _send(
        self,
        envelopes: list[Envelope],
        priority: int | None = None,
        headers: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None:
        if self._reorder:
            if len(envelopes) < 2:
                raise ConfigurationError(
                    "reorder() needs several events: await worker.publish_many([one, another])"
                )
            self._reorder = False
            envelopes = [*reversed(envelopes)]
        if self._twice:
            self._twice = False
            for envelope in envelopes:
                self._ledger.expect_extra(envelope)
            envelopes = [envelope for envelope in envelopes for _ in range(2)]
        if len(envelopes) == 1:  # whose error is its own, and not one of many
            await self._publisher.publish_envelope(envelopes[0], priority=priority, headers=headers)
        else:
            await self._publisher.publish_many(envelopes, priority=priority, headers=headers)

    # What goes wrong

    def deliver_twice(self) -> None:
        """Have the next publish of the test arrive twice, each time under the same id."""
        self._twice = True

    def crash_before_ack(self, consumer: str | None = None) -> None:
        """Let the worker crash when the next handler has returned, before its commit and its ack.

        With a name the next one of this consumer.

        Nothing of its transaction stays, and the event is delivered again. Whatever else runs at
        that moment goes on; as it lost its connection too, it is delivered again as well.
        """
        self._crashes.due.append(("crash_before_ack", consumer))

    def crash_after_commit(self, consumer: str | None = None) -> None:
        """Let the worker crash when the next handler's work is committed, before the ack.

        With a name the next one of this consumer.

        All of it stays, and the event is delivered again. A consumer that is not transactional has
        no commit, and for it this is the same as `crash_before_ack`.
        """
        self._crashes.due.append(("crash_after_commit", consumer))

    def reorder(self) -> None:
        """Have the events of the next `publish_many` get into each queue in reverse."""
        self._reorder = True

    def _nothing_is_due(self) -> None:
        """Raises ConfigurationError for a step whose turn never came: nothing was tried."""
        steps = {"deliver_twice": self._twice, "reorder": self._reorder}
        due = [where for where, _ in self._crashes.due] + [one for one in steps if steps[one]]
        if due:
            raise ConfigurationError(
                f"{due[0]}() was asked for and has not happened: make the step before the publish "
                "whose handler succeeds"
            )

    @property
    def broker(self) -> EmbeddedBroker:
        """The embedded broker, with its `faults` and its `clock`.

        Raises ConfigurationError where the test runs on a real one.
        """
        if isinstance(self._broker, OwnBroker):
            return self._broker.broker
        raise ConfigurationError("this test runs on a real broker, which has no faults to be set")

    # What a test is shown

    @property
    def url(self) -> str:
        """The AMQP URL of the test's broker, for other clients."""
        return self._broker.url

    @property
    def exchange(self) -> str:
        """The exchange that events are published to."""
        return self._broker.exchange

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the test's database. Raises ConfigurationError if it has none."""
        if self._engine is None:
            raise ConfigurationError(
                "this test has no database: give it one, TestWorker(…, tables=…)"
            )
        return self._engine

    @property
    def has_database(self) -> bool:
        """Whether there is an `engine`."""
        return self._engine is not None

    def state(self, plugin: Plugin) -> Any:
        """What the plugin's lifespan has yielded."""
        return self._states.get(plugin)
