"""Declarations: what `@plugin.consumer` takes from a handler, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Union

import pytest

from evworker.broker import ConsumerError, DurationError, Envelope, Event, InvalidEventError
from evworker.workers import AnyEvent, Context, Plugin, Retry

if TYPE_CHECKING:
    from evworker.workers import Consumer
    from evworker.workers import Context as ContextForTheTypeChecker


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: str


class OrderCancelled(Event, topic="orders.cancelled"):
    order_id: str


class OrderPlacedOnce(Event, topic="orders.placed", version=1):
    order: int


class Family(Event):
    order_id: str


async def on_any(event: Any, ctx: Context) -> None: ...


async def on_placed(event: OrderPlaced, ctx: Context) -> None: ...


async def on_union(event: OrderPlaced | OrderCancelled, ctx: Context) -> None: ...


# What older code has, and what pyupgrade would rewrite.
async def on_old_union(event: Union[OrderPlaced, OrderCancelled], ctx: Context) -> None: ...  # noqa: UP007


async def on_optional(event: OrderPlaced | None, ctx: Context) -> None: ...


async def with_hidden_context(event: OrderPlaced, ctx: ContextForTheTypeChecker) -> None: ...


def in_a_thread(event: OrderPlaced, ctx: Context) -> None: ...


class OnPlaced:
    async def __call__(self, event: OrderPlaced, ctx: Context) -> None: ...

    async def method(self, event: OrderPlaced, ctx: Context) -> None: ...


class InAThread:
    def __call__(self, event: OrderPlaced, ctx: Context) -> None: ...


async def with_gateway(gateway: str, event: OrderPlaced, ctx: Context) -> None: ...


def logged(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def call(event: Any, ctx: Context) -> None:
        await handler(event, ctx)

    return call


def declared(handler: Callable[..., Any], *events: type[Event] | str, **options: Any) -> Consumer:
    plugin = Plugin("billing")
    plugin.consumer(*events, **options)(handler)
    (consumer,) = plugin.consumers
    return consumer


def refused(handler: Callable[..., Any], *events: Any, **options: Any) -> str:
    """The message of the ConsumerError; nothing of the declaration may be left behind."""
    plugin = Plugin("billing")
    with pytest.raises(ConsumerError) as error:
        plugin.consumer(*events, **options)(handler)
    assert plugin.consumers == ()
    return str(error.value)


# What a declaration takes from its handler


@pytest.mark.parametrize(
    "handler",
    [
        on_placed,
        on_optional,
        in_a_thread,
        OnPlaced(),
        OnPlaced().method,
        InAThread(),
        logged(on_placed),
        with_hidden_context,
        functools.partial(with_gateway, "stripe"),
    ],
    ids=[
        "function",
        "optional",
        "plain function",
        "object",
        "method",
        "plain object",
        "decorated",
        "context known to the type checker only",
        "partial",
    ],
)
def test_the_event_type_is_read_off_the_annotation(handler: Callable[..., Any]) -> None:
    consumer = declared(handler, name="charge")
    assert consumer.event_types == (OrderPlaced,)
    assert consumer.patterns == ("orders.placed",)


@pytest.mark.parametrize("handler", [on_union, on_old_union])
def test_a_union_names_several_event_types(handler: Callable[..., Any]) -> None:
    consumer = declared(handler)
    assert consumer.event_types == (OrderPlaced, OrderCancelled)
    assert consumer.patterns == ("orders.placed", "orders.cancelled")


def test_named_types_may_be_fewer_than_the_annotated() -> None:
    consumer = declared(on_union, OrderCancelled)
    assert consumer.event_types == (OrderCancelled,)
    assert not consumer.wants("orders.placed")


def test_patterns_of_an_unannotated_handler_come_as_any_event() -> None:
    consumer = declared(on_any, "orders.*", "payments.#")
    assert consumer.patterns == ("orders.*", "payments.#")
    assert [consumer.wants(t) for t in ("orders.x", "payments", "payments.a.b", "orders.a.b")] == [
        True,
        True,
        True,
        False,
    ]
    read = consumer.decode(envelope("orders.x", b'{"n": 1}', version=3))
    assert read == AnyEvent("orders.x", 3, {"n": 1})


@pytest.mark.parametrize("handler", [on_placed, with_hidden_context])
def test_a_pattern_with_an_annotated_type_takes_that_type_only(
    handler: Callable[..., Any],
) -> None:
    consumer = declared(handler, "orders.*")
    assert consumer.patterns == ("orders.*",)
    assert consumer.wants("orders.placed")
    assert not consumer.wants("orders.cancelled")
    read = consumer.decode(envelope("orders.placed", b'{"order_id": "1"}'))
    assert read == OrderPlaced(order_id="1")


def test_types_beside_a_pattern_keep_their_type() -> None:
    consumer = declared(on_any, OrderPlaced, "payments.*")
    assert set(consumer.patterns) == {"payments.*", "orders.placed"}
    assert isinstance(consumer.decode(envelope("orders.placed", b'{"order_id": "1"}')), OrderPlaced)
    assert isinstance(consumer.decode(envelope("payments.done", b"{}")), AnyEvent)


def test_an_event_that_is_not_what_its_type_promises_is_told() -> None:
    consumer = declared(on_placed)
    with pytest.raises(InvalidEventError, match="order_id"):
        consumer.decode(envelope("orders.placed", b'{"order_id": 1}'))


def envelope(topic: str, data: bytes, version: int | None = None) -> Envelope:
    wrapped = Envelope.wrap(OrderPlaced(order_id=""), source="test")
    return Envelope(
        id="1", source="test", topic=topic, time=wrapped.time, data=data, version=version
    )


@pytest.mark.parametrize(
    ("handler", "is_async"),
    [
        (on_placed, True),
        (OnPlaced(), True),
        (OnPlaced().method, True),
        (functools.partial(with_gateway, "stripe"), True),
        (in_a_thread, False),
        (InAThread(), False),
        (functools.partial(in_a_thread), False),
    ],
)
def test_what_runs_in_a_thread_is_told_by_its_kind(
    handler: Callable[..., Any], is_async: bool
) -> None:
    assert declared(handler, OrderPlaced, name="charge").is_async is is_async


def test_what_is_not_said_has_its_default() -> None:
    consumer = declared(on_placed)
    assert (consumer.name, consumer.queue) == ("billing.on_placed", "billing.on_placed")
    assert consumer.retry == Retry("1s", "5s", "30s", "5m")
    assert (consumer.concurrency, consumer.prefetch, consumer.timeout_s) == (10, 20, 300.0)
    assert consumer.priorities is None
    assert declared(in_a_thread).timeout_s is None


def test_what_is_said_is_kept() -> None:
    consumer = declared(
        on_placed,
        name="charge",
        queue="billing.charge",
        retry=Retry(),
        concurrency=3,
        prefetch=7,
        timeout="2s",
        priorities=5,
    )
    assert (consumer.name, consumer.queue) == ("charge", "billing.charge")
    assert (consumer.concurrency, consumer.prefetch, consumer.timeout_s) == (3, 7, 2.0)
    assert (consumer.retry, consumer.priorities) == (Retry(), 5)
    assert declared(on_placed, timeout=None).timeout_s is None
    assert declared(on_placed, name="charge").queue == "charge"


def test_a_large_concurrency_has_a_prefetch_that_amqp_can_say() -> None:
    assert declared(on_placed, concurrency=40_000).prefetch == 65_535


def test_the_function_stays_as_it_is() -> None:
    assert Plugin("billing").consumer(OrderPlaced)(on_placed) is on_placed


# What is refused


async def too_few(event: OrderPlaced) -> None: ...


async def too_many(event: OrderPlaced, ctx: Context, more: str) -> None: ...


async def wants_a_keyword(event: OrderPlaced, ctx: Context, *, more: str) -> None: ...


@pytest.mark.parametrize("handler", [too_few, too_many, wants_a_keyword])
def test_a_handler_takes_an_event_and_a_context(handler: Callable[..., Any]) -> None:
    assert "must take two arguments, (event, ctx)" in refused(handler, OrderPlaced)


async def on_defaults(event: OrderPlaced, ctx: Context, more: str = "") -> None: ...


def test_further_arguments_may_have_defaults() -> None:
    assert declared(on_defaults).event_types == (OrderPlaced,)


def yields(event: OrderPlaced, ctx: Context) -> Iterator[None]:
    yield


async def yields_async(event: OrderPlaced, ctx: Context) -> AsyncIterator[None]:
    yield


class Yields:
    def __call__(self, event: OrderPlaced, ctx: Context) -> Iterator[None]:
        yield


class YieldsAsync:
    async def __call__(self, event: OrderPlaced, ctx: Context) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize(
    "handler", [yields, yields_async, functools.partial(yields), Yields(), YieldsAsync()]
)
def test_a_handler_that_yields_would_never_run(handler: Callable[..., Any]) -> None:
    assert "its handler yields, so it would never run" in refused(
        handler, OrderPlaced, name="charge"
    )


def test_a_handler_must_be_callable() -> None:
    not_a_function: Any = "charge"
    assert "'charge' is no function" in refused(not_a_function, OrderPlaced)


def test_an_annotation_must_agree_with_the_event_types() -> None:
    message = refused(on_placed, OrderPlaced, OrderCancelled)
    assert "'billing.on_placed' wants OrderCancelled, but its handler takes OrderPlaced" in message


def test_something_must_be_wanted() -> None:
    assert "names no event type and no topic pattern" in refused(on_any)


def test_an_event_type_must_have_a_topic() -> None:
    assert 'Family has no topic; declare it as class Family(Event, topic="…")' in refused(
        on_any, Family
    )


def test_two_event_types_of_one_topic_can_not_be_told_apart() -> None:
    assert "two event types of one topic" in refused(on_any, OrderPlaced, OrderPlacedOnce)


@pytest.mark.parametrize("wanted", [dict, 42, OrderPlaced(order_id="1")])
def test_what_is_wanted_is_a_type_or_a_pattern(wanted: object) -> None:
    assert "is no event type and no topic pattern" in refused(on_any, wanted)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("", "can't be empty"),
        ("orders..placed", "empty word"),
        ("orders.pl*", "wildcard must stand alone"),
        ("orders placed", "only letters, digits"),
        ("x" * 256, "longer than 255"),
    ],
)
def test_a_pattern_that_would_not_match_as_meant_is_refused(pattern: str, fault: str) -> None:
    message = refused(on_any, pattern)
    assert fault in message
    assert "billing.on_any" in message


@pytest.mark.parametrize("priorities", [-1, 0, 1, 11])
def test_priorities_are_2_to_10(priorities: int) -> None:
    assert f"priorities={priorities} must be 2 to 10" in refused(on_placed, priorities=priorities)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_concurrency_is_1_or_more(concurrency: int) -> None:
    assert "must be 1 or more" in refused(on_placed, concurrency=concurrency)


@pytest.mark.parametrize("prefetch", [0, -1, 65_536])
def test_prefetch_is_what_amqp_can_say(prefetch: int) -> None:
    assert "must be 1 to 65535" in refused(on_placed, prefetch=prefetch)


def test_a_thread_can_not_be_stopped_by_a_timeout() -> None:
    assert "a plain function runs in a thread" in refused(in_a_thread, timeout="5s")
    assert declared(in_a_thread, timeout=None).timeout_s is None


@pytest.mark.parametrize("timeout", ["soon", 0, -1])
def test_a_timeout_must_be_a_duration(timeout: str | int) -> None:
    with pytest.raises(DurationError):
        declared(on_placed, timeout=timeout)


# Two consumers


def test_a_name_is_a_consumers_identity() -> None:
    plugin = Plugin("billing")
    plugin.consumer(OrderPlaced)(on_placed)
    with pytest.raises(ConsumerError, match=r"two consumers are named 'billing.on_placed'"):
        plugin.consumer(OrderPlaced, queue="other")(on_placed)
    assert len(plugin.consumers) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("orders.placed", "orders.placed"),
        ("orders.*", "orders.placed"),
        ("orders.#", "#.placed"),
        ("#", "payments.x"),
        ("*.placed", "orders.*"),
    ],
)
def test_topics_that_overlap_on_one_queue_are_refused(one: str, other: str) -> None:
    plugin = Plugin("billing")
    plugin.consumer(one, name="one", queue="shared")(on_any)
    with pytest.raises(ConsumerError, match="each event would reach only one of them"):
        plugin.consumer(other, name="other", queue="shared")(on_any)
    plugin.consumer(other, name="other", queue="its own")(on_any)
    assert [consumer.name for consumer in plugin.consumers] == ["one", "other"]


def test_disjoint_topics_may_share_a_queue() -> None:
    plugin = Plugin("billing")
    plugin.consumer("orders.*", name="one", queue="shared")(on_any)
    plugin.consumer("orders.*.late", name="other", queue="shared")(on_any)
    assert len(plugin.consumers) == 2


def test_consumers_of_one_queue_agree_on_its_priorities() -> None:
    plugin = Plugin("billing")
    plugin.consumer("orders.*", name="one", queue="shared", priorities=5)(on_any)
    with pytest.raises(ConsumerError, match="but say priorities=5 and None"):
        plugin.consumer("payments.*", name="other", queue="shared")(on_any)


# Types that nothing can be read into


class TwoShapes(Event, topic="shapes.two"):
    shape: dict[str, int] | OrderPlaced  # two kinds of objects, which nothing tells apart


class Nowhere(Event, topic="types.nowhere"):
    thing: NoSuchType  # type: ignore[name-defined]  # noqa: F821 - that is the point


@pytest.mark.parametrize("event_type", [TwoShapes, Nowhere])
def test_an_event_type_that_can_not_be_read_is_refused_when_it_is_declared(
    event_type: type[Event],
) -> None:
    async def handler(event: Any, ctx: Context) -> None: ...

    with pytest.raises(ConsumerError, match=rf"events of {event_type.__name__} can't be read"):
        Plugin("billing").consumer(event_type)(handler)
