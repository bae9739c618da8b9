"""Handlers: whatever they do, their delivery ends in one way, and the next one is handled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from evworker.workers import Context, HandlerTimeoutError, Plugin, Retry
from tests.waiting import eventually
from tests.workers.stage import (
    SOON,
    OrderPlaced,
    OutOfLuckError,
    PaymentProcessed,
    Seen,
    Stage,
    UserRegistered,
)


class NoExceptionAtAll(BaseException):
    pass


RAISED = [
    ValueError("no"),
    asyncio.CancelledError("the handler's own"),
    SystemExit(3),
    StopIteration(7),
    GeneratorExit(),
    StopAsyncIteration(),
    TimeoutError("its own"),
    NoExceptionAtAll(),
    ExceptionGroup("several", [ValueError(), KeyError()]),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_whatever_is_raised_is_a_failed_attempt_and_no_more(
    stage: Stage, kind: str, error: BaseException
) -> None:
    seen = Seen()

    def in_thread(event: OrderPlaced, ctx: Context) -> None:
        seen.note(event, ctx)
        if event.order_id == "bad":
            raise error

    async def in_loop(event: OrderPlaced, ctx: Context) -> None:
        in_thread(event, ctx)

    handler: Callable[..., Any] = in_loop if kind == "async" else in_thread
    plugin = stage.plugin(handler, OrderPlaced, retry=Retry(SOON), concurrency=1)
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="bad"))
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 1})
        await stage.publish(OrderPlaced(order_id="good"))
        await eventually(lambda: worker.counts.handled == 1)
    assert seen.attempts == [1, 2, 1]
    failure = (await stage.letter(stage.queue("charge"))).failure
    # A coroutine can't raise StopIteration; Python itself makes a RuntimeError of it. Nor should it
    # raise GeneratorExit, which says that it is being closed.
    names = {"StopIteration": "RuntimeError", "GeneratorExit": "RuntimeError"}
    if kind == "async":
        names["StopAsyncIteration"] = "StopAsyncIteration"
    name = type(error).__name__
    assert (failure.error_type or "").endswith(names.get(name, name))


async def test_a_handler_that_cancels_its_own_task_costs_no_more_than_its_attempt(
    stage: Stage,
) -> None:
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        if event.order_id == "bad":
            task = asyncio.current_task()
            assert task is not None
            task.cancel("by its own hand")
            await asyncio.sleep(0)
        elif event.order_id == "sly":
            task = asyncio.current_task()
            assert task is not None
            task.cancel("for those who come after")

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON), concurrency=1)
    async with stage.working(plugin) as worker:
        await stage.publish(OrderPlaced(order_id="sly"))
        await stage.publish(OrderPlaced(order_id="bad"))
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 1})
        await stage.publish(OrderPlaced(order_id="good"))
        await eventually(lambda: worker.counts.handled == 2)


@pytest.mark.parametrize("when", ["at-once", "a-turn-later"])
async def test_a_handler_that_cancels_its_own_task_and_fails_is_settled(
    stage: Stage, when: str
) -> None:
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        if when == "at-once":
            task.cancel()
        else:
            asyncio.get_running_loop().call_soon(task.cancel)  # while it is put aside
        raise OutOfLuckError

    plugin = stage.plugin(charge, OrderPlaced, concurrency=1)
    async with stage.working(plugin) as worker:
        for number in range(5):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: worker.counts.dead_lettered == {"failed": 5})


async def test_others_come_to_their_turn_between_handlers_that_do_not_suspend(
    stage: Stage,
) -> None:
    turns: list[int] = []
    seen: list[int] = []

    async def charge(event: OrderPlaced, ctx: Context) -> None:
        seen.append(len(turns))
        asyncio.get_running_loop().call_soon(turns.append, len(seen))
        time.sleep(0.02)  # noqa: ASYNC251 - as a handler that computes

    plugin = stage.plugin(charge, OrderPlaced, concurrency=1, prefetch=20)
    await stage.declare(plugin)
    for number in range(20):
        await stage.publish(OrderPlaced(order_id=str(number)))
    async with stage.working(plugin) as worker:
        await eventually(lambda: worker.counts.handled == 20)
    assert seen == list(range(20))


async def test_a_handler_that_takes_too_long_is_cancelled_and_tried_again(stage: Stage) -> None:
    seen = Seen()
    cancelled: list[int] = []

    async def charge(event: Any, ctx: Context) -> None:
        seen.note(event, ctx)
        if ctx.attempt == 1:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(ctx.attempt)
                raise

    plugin = stage.plugin(charge, OrderPlaced, retry=Retry(SOON), timeout="50ms")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert (seen.attempts, cancelled) == ([1, 2], [1])
    assert (worker.counts.handled, worker.counts.retried) == (1, 1)
    assert "charge took longer than its timeout of 50ms" in str(
        seen.contexts[1].headers["evw-error"]
    )


async def test_a_timeout_may_be_given_up_on(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        await asyncio.Event().wait()

    retry = Retry("1h", give_up_on=HandlerTimeoutError)
    plugin = stage.plugin(charge, OrderPlaced, retry=retry, timeout="50ms")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"given-up": 1}
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert failure.error_type == "evworker.workers.retry.HandlerTimeoutError"
    assert (failure.frame or "").endswith("charge"), "where it was when its time was up"


async def test_what_a_handler_raises_when_its_time_is_up_is_what_is_told(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OutOfLuckError("while cleaning up")

    plugin = stage.plugin(charge, OrderPlaced, timeout="50ms")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await stage.work(plugin)
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert failure.error_message == "while cleaning up"


async def test_a_time_out_of_its_own_when_its_time_is_up_tells_where_it_was_raised(
    stage: Stage,
) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError("as a driver does") from None

    plugin = stage.plugin(charge, OrderPlaced, timeout="50ms")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await stage.work(plugin)
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert failure.error_type == "evworker.workers.retry.HandlerTimeoutError"
    assert (failure.frame or "").endswith("charge")


async def test_one_that_is_late_tells_what_it_was_about_to_mend(stage: Stage) -> None:
    async def charge(event: Any, ctx: Context) -> None:
        try:
            raise OutOfLuckError("the bank is away")
        except OutOfLuckError:
            await asyncio.Event().wait()

    plugin = stage.plugin(charge, OrderPlaced, timeout="50ms")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await stage.work(plugin)
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert "OutOfLuckError: the bank is away" in (failure.traceback or "")


async def test_a_handler_that_is_late_and_cancels_its_own_task_is_put_aside_once(
    stage: Stage,
) -> None:
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task.cancel()
            raise

    plugin = stage.plugin(charge, OrderPlaced, timeout="50ms")
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await stage.work(plugin)
    assert len(await stage.letters(stage.queue("charge"))) == 1


async def test_a_plain_function_runs_beside_the_event_loop(stage: Stage) -> None:
    together = threading.Barrier(3, timeout=20)  # passes only if three run at once
    threads: list[str] = []

    def charge(event: OrderPlaced, ctx: Context) -> None:
        together.wait()
        threads.append(threading.current_thread().name)

    plugin = stage.plugin(charge, OrderPlaced, concurrency=3)
    async with stage.working(plugin) as worker:
        for number in range(3):
            await stage.publish(OrderPlaced(order_id=str(number)))
        await eventually(lambda: worker.counts.handled == 3)
    assert len(set(threads)) == 3
    assert all("charge" in name for name in threads)


def awaitable(event: OrderPlaced, ctx: Context) -> Any:
    async def nobody_awaits() -> None: ...

    return nobody_awaits()


def future(event: OrderPlaced, ctx: Context) -> Any:
    class Later:
        def __await__(self) -> Iterator[None]:
            yield

    return Later()


def generator(event: OrderPlaced, ctx: Context) -> Any:
    def nobody_iterates() -> Iterator[None]:
        yield

    return nobody_iterates()


def async_generator(event: OrderPlaced, ctx: Context) -> Any:
    async def nobody_iterates() -> AsyncIterator[None]:
        yield

    return nobody_iterates()


@pytest.mark.parametrize("handler", [awaitable, future, generator, async_generator])
async def test_work_that_was_only_promised_is_not_done(
    stage: Stage, handler: Callable[..., Any]
) -> None:
    plugin = stage.plugin(handler, OrderPlaced)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    worker = await stage.work(plugin)
    assert worker.counts.dead_lettered == {"failed": 1}
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert failure.error_type == "TypeError"
    assert handler.__name__ in (failure.error_message or "")


async def test_what_a_handler_publishes_knows_where_it_comes_from(stage: Stage) -> None:
    users, orders, payments = Seen(), Seen(), Seen()
    plugin = Plugin("shop")

    async def on_user(event: UserRegistered, ctx: Context) -> None:
        users.note(event, ctx)
        await ctx.publish(OrderPlaced(order_id="42"), key="k", headers={"tenant": "acme"})

    def on_order(event: OrderPlaced, ctx: Context) -> None:
        orders.note(event, ctx)
        ctx.publish_sync(PaymentProcessed(order_id=event.order_id), id="payment-42", priority=3)

    for name, handler in (("users", on_user), ("orders", on_order)):
        plugin.consumer(name=name, queue=stage.queue(name), retry=Retry())(handler)
    plugin.consumer(PaymentProcessed, name="pay", queue=stage.queue("pay"))(payments)
    async with stage.working(plugin):
        root = await stage.publish(UserRegistered(user_id="7"), id="root")
        await eventually(lambda: len(payments) == 1)
    order, payment = orders.contexts[0].envelope, payments.contexts[0].envelope
    assert (root.correlation_id, root.causation_id) == ("root", None)
    assert (order.correlation_id, order.causation_id) == ("root", "root")
    assert (payment.correlation_id, payment.causation_id) == ("root", order.id)
    assert (order.source, order.key, order.version) == ("shop", "k", 2)
    assert orders.contexts[0].headers["tenant"] == "acme"
    assert payment.id == "payment-42"
    assert payments.events == [PaymentProcessed(order_id="42")]


async def test_a_trace_goes_on_in_what_a_handler_publishes(stage: Stage) -> None:
    orders = Seen()
    plugin = Plugin("shop")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def on_user(event: Any, ctx: Context) -> None:
        await ctx.publish(OrderPlaced(order_id="42"))

    plugin.consumer("users.#", name="users", queue=stage.queue("users"))(on_user)
    plugin.consumer(OrderPlaced, name="orders", queue=stage.queue("orders"))(orders)
    async with stage.working(plugin):
        await stage.send(
            b'{"user_id": "7"}',
            topic="users.registered",
            headers={"ce-id": "1", "ce-type": "users.registered", "ce-traceparent": trace},
        )
        await eventually(lambda: len(orders) == 1)
    assert orders.contexts[0].envelope.traceparent == trace
    assert orders.contexts[0].headers["traceparent"] == trace


async def test_publish_sync_in_the_event_loop_says_so_instead_of_waiting_for_itself(
    stage: Stage,
) -> None:
    async def charge(event: OrderPlaced, ctx: Context) -> None:
        ctx.publish_sync(PaymentProcessed(order_id=event.order_id))

    plugin = stage.plugin(charge, OrderPlaced)
    await stage.declare(plugin)
    await stage.publish(OrderPlaced(order_id="42"))
    await stage.work(plugin)
    failure = (await stage.letter(stage.queue("charge"))).failure
    assert "await ctx.publish" in (failure.error_message or "")


async def test_the_context_tells_of_its_delivery(stage: Stage) -> None:
    seen = Seen()
    plugin = stage.plugin(seen, OrderPlaced)
    async with stage.working(plugin):
        await stage.publish(OrderPlaced(order_id="42"), headers={"tenant": "acme"}, id="e-1")
        await eventually(lambda: len(seen) == 1)
    (ctx,) = seen.contexts
    assert (ctx.consumer, ctx.queue) == ("charge", stage.queue("charge"))
    assert (ctx.attempt, ctx.redelivered, ctx.state) == (1, False, None)
    assert ctx.headers["tenant"] == "acme"
    assert ctx.log_fields() == {
        "event_id": "e-1",
        "topic": "orders.placed",
        "consumer": "charge",
        "queue": stage.queue("charge"),
        "attempt": 1,
    }
