"""From a delivery to its outcome: decode, call the handler, judge what it did. Settles nothing."""

from __future__ import annotations

import asyncio
import inspect
import time as clock
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from evworker.broker import (
    DatabaseUnreachableError,
    Envelope,
    EventError,
    Failure,
    InvalidEventError,
    UndecodableError,
    format_duration,
)
from evworker.broker.failure import message_of
from evworker.workers.context import Context
from evworker.workers.deadlines import Deadlines
from evworker.workers.first_step import first_step
from evworker.workers.killswitch import SwitchState
from evworker.workers.outcome import (
    DeadLettered,
    Discarded,
    Duplicate,
    HandedBack,
    Outcome,
    Paused,
    Retried,
    Succeeded,
)
from evworker.workers.retry import HandlerTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from evworker.broker import Event, Publisher
    from evworker.broker.delivery import Delivery
    from evworker.broker.failure import Reason
    from evworker.workers.consumer import AnyEvent, Consumer, Middleware, Next
    from evworker.workers.inbox import Inbox
    from evworker.workers.transaction import Transaction

_SUCCEEDED = Succeeded()
_HANDED_BACK = HandedBack()
_DUPLICATE = Duplicate()

_NOT_JUDGED = (KeyboardInterrupt, GeneratorExit)


class UnwantedError(EventError):
    """No consumer of the queue wants the message's topic."""


class CrashedError(EventError):
    """The message has killed its worker too often."""


class Execution:
    """Runs the handler of one consumer, middleware and all.

    `state` is what its plugin's lifespan yielded; `inbox` is there if the consumer is
    transactional, and `stop_asked` ends its waiting for the database. A handler that is a plain
    function runs in a thread of this execution's own pool.
    """

    def __init__(
        self,
        consumer: Consumer,
        *,
        state: Any,
        publisher: Publisher,
        inbox: Inbox | None,
        stop_asked: asyncio.Event,
    ) -> None:
        self.consumer = consumer
        self.running_threads = 0
        self.switch = SwitchState(consumer.kill_switch) if consumer.kill_switch else None
        self.stopped = False
        """Whether the worker cancels what runs here: then a cancelled attempt is no failed one."""
        self._state = state
        self._publisher = publisher
        self._inbox = inbox if consumer.transactional else None
        self._stop_asked = stop_asked
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(consumer.timeout_s, self._loop, self._late)
        self._threads: ThreadPoolExecutor | None = None
        if consumer.is_async:
            handler: Next = consumer.handler  # type: ignore[assignment]  # is_async has told
        else:
            handler = self._call_in_thread
            self._threads = ThreadPoolExecutor(consumer.concurrency, f"evworker {consumer.name}")
        for middleware in reversed(consumer.middleware):
            handler = _wrapped(middleware, handler)
        self._call = handler

    def close(self) -> None:
        """Let go of the threads; those that still run can't be stopped and are not waited for."""
        self._deadlines.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def context(self, delivery: Delivery, envelope: Envelope) -> Context:
        """What the handler will be given beside its event."""
        return Context(
            self.consumer,
            envelope,
            delivery,
            state=self._state,
            publisher=self._publisher,
            loop=self._loop,
        )

    def begin(self, delivery: Delivery, context: Context) -> Outcome | Awaitable[Outcome]:
        """One attempt: its outcome or, if its handler has suspended, what to await for that.

        Neither raises: whatever happens is in the outcome.
        """
        try:
            event = self.consumer.decode(context.envelope)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a type's __post_init__ can do anything
            reason: Reason = "undecodable" if isinstance(error, UndecodableError) else "invalid"
            return DeadLettered(failure_of(delivery, reason, error, consumer=self.consumer.name))
        if self._inbox is not None:
            return self._in_transaction(self._inbox, event, delivery, context)
        started_at = self._loop.time()
        try:
            suspended = first_step(self._call(event, context))
        except _NOT_JUDGED:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too: no handler stops the worker
            return self._ended_by(error, delivery)
        if suspended is not None:
            return self._rest(suspended, started_at, delivery)
        return self._succeeded()

    async def _rest(
        self, suspended: Awaitable[None], started_at: float, delivery: Delivery
    ) -> Outcome:
        try:
            with self._deadlines.of(started_at):
                await suspended
        except _NOT_JUDGED:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            return self._ended_by(error, delivery)
        return self._succeeded()

    async def _in_transaction(
        self, inbox: Inbox, event: Event | AnyEvent, delivery: Delivery, context: Context
    ) -> Outcome:
        transaction = await self._begin(inbox, delivery, context)
        if isinstance(transaction, Outcome):
            return transaction
        try:
            started_at = self._loop.time()
            suspended = first_step(self._call(event, context))
            if suspended is not None:
                with self._deadlines.of(started_at):
                    await suspended
            await transaction.commit()
        except _NOT_JUDGED:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            return self._ended_by(transaction.told(error), delivery)
        finally:
            await transaction.roll_back()
        return self._succeeded()

    async def _begin(
        self, inbox: Inbox, delivery: Delivery, context: Context
    ) -> Transaction | Outcome:
        """The attempt's transaction, or what becomes of the delivery without an attempt."""

        def may_wait() -> bool:
            return delivery.is_live and not self._stop_asked.is_set()

        try:
            transaction = await inbox.begin(self.consumer, context.envelope, may_wait)
        except InvalidEventError as error:
            return DeadLettered(failure_of(delivery, "invalid", error, consumer=self.consumer.name))
        except (DatabaseUnreachableError, asyncio.CancelledError):
            return _HANDED_BACK
        if transaction is None:
            return _DUPLICATE
        context.transaction = transaction
        return transaction

    async def _call_in_thread(self, event: Event | AnyEvent, context: Context) -> None:
        call = partial(_outcome_of, self.consumer.handler, event, context)
        self.running_threads += 1
        thread = self._loop.run_in_executor(self._threads, copy_context().run, call)
        thread.add_done_callback(self._thread_ended)
        # Shielded: a thread that has started goes on when its waiting is cancelled, and is counted.
        error = await asyncio.shield(thread)
        if error is not None:
            raise error

    def _thread_ended(self, _thread: asyncio.Future[BaseException | None]) -> None:
        self.running_threads -= 1

    def _late(self) -> HandlerTimeoutError:
        timeout = format_duration(self.consumer.timeout_s or 0)
        return HandlerTimeoutError(
            f"{self.consumer.name} took longer than its timeout of {timeout}"
        )

    def _succeeded(self) -> Outcome:
        if self.switch is not None:
            self.switch.succeeded(clock.monotonic())
        return _SUCCEEDED

    def _ended_by(self, error: BaseException, delivery: Delivery) -> Outcome:
        """What comes of an attempt that has raised."""
        if self.stopped:
            return _HANDED_BACK  # whatever error a library has made of the cancellation
        earlier = Failure.from_headers(delivery.headers)
        decision = self.consumer.retry.decide(
            error,
            failed_attempts=earlier.attempts + 1,
            failing_for_s=_seconds_since(earlier.first_failed_at),
        )
        why = f"{type(error).__name__}: {message_of(error)}"
        if decision.what == "discard":
            if self.switch is not None:
                self.switch.succeeded(clock.monotonic())  # it ended as its author meant it to
            return Discarded(why)
        if self.switch is not None and self._is_paused_by(self.switch, error):
            return Paused(why)
        failure = failure_of(
            delivery,
            "given-up" if decision.what == "give-up" else "failed",
            error,
            consumer=self.consumer.name,
            attempted=True,
        )
        if decision.what == "retry":
            return Retried(decision.delay_s, failure)
        return DeadLettered(failure)

    @staticmethod
    def _is_paused_by(switch: SwitchState, error: BaseException) -> bool:
        """Tell the kill switch of a failure; whether it says that the attempt does not count."""
        now = clock.monotonic()
        if not switch.settings.matches(error):
            switch.failed_otherwise(now)
            return False
        switch.failed(now)
        return switch.state != "closed"


def _seconds_since(time: datetime | None) -> float:
    return 0.0 if time is None else (datetime.now(UTC) - time).total_seconds()


def failure_of(
    delivery: Delivery,
    reason: Reason,
    error: BaseException,
    *,
    consumer: str | None = None,
    attempted: bool = False,
) -> Failure:
    """The failure that goes onto the message's next copy, counting this attempt if it was one."""
    earlier = Failure.from_headers(delivery.headers)
    return Failure.now(
        reason,
        error,
        attempts=earlier.attempts + attempted,
        consumer=consumer,
        earlier=earlier,
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
    )


def _wrapped(middleware: Middleware, inner: Next) -> Next:
    async def call(event: Event | AnyEvent, context: Context) -> None:
        await middleware(event, context, inner)

    return call


def _outcome_of(handler: Any, event: Event | AnyEvent, context: Context) -> BaseException | None:
    # Returned and not raised: a StopIteration can't be raised into a future, its waiter would hang.
    try:
        result = handler(event, context)
    except BaseException as error:  # noqa: BLE001 - judged in the event loop
        return error
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        return TypeError(
            f"the handler {getattr(handler, '__name__', handler)!r} returned a "
            f"{type(result).__name__}, which nobody awaits; declare it with async def"
        )
    return None
