"""Consumers: what `@plugin.consumer` declares, checked once and trusted from then on."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import msgspec

from evworker.broker import (
    ConsumerError,
    Envelope,
    Event,
    InvalidTopicError,
    check_pattern,
    parse_duration,
)
from evworker.broker.topics import matches, overlap
from evworker.workers.context import Context

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evworker.broker import Duration
    from evworker.workers.killswitch import KillSwitch
    from evworker.workers.retry import Retry

# Handlers take exactly their own event types, which no common signature can say.
Handler = Callable[..., Awaitable[None]] | Callable[..., None]
Next = Callable[[Any, Context], Awaitable[None]]
Middleware = Callable[[Any, Context, Next], Awaitable[None]]
"""``async def timed(event, ctx, call_next): …; await call_next(event, ctx); …``"""

DEFAULT_CONCURRENCY = 10
DEFAULT_CRASH_LIMIT = 2
DEFAULT_TIMEOUT_S = 300.0
"""Well below the 30 minutes after which the broker takes a delivery back
(https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""

LARGEST_PREFETCH = 65_535
"""AMQP says it in 16 bits."""

_LONGEST_INBOX_NAME = 255
_PREFETCH_FOR_EACH_HANDLER = 2
_MOST_PRIORITIES = 10


@dataclass(frozen=True, slots=True)
class AnyEvent:
    """An event as a consumer of topic patterns gets it: its type is not known here."""

    topic: str
    version: int | None
    data: Any  # any JSON value
    """The event as plain JSON values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A declared binding of topics to a queue and a handler, with its policies."""

    name: str
    plugin: str
    queue: str
    handler: Handler
    middleware: tuple[Middleware, ...]
    event_types: tuple[type[Event], ...]
    patterns: tuple[str, ...]
    """What the queue is bound with: the topics of the event types, and the patterns."""
    takes_any: bool
    """Whether its handler takes events of unknown type, as AnyEvent."""
    retry: Retry
    priorities: int | None
    concurrency: int
    prefetch: int
    timeout_s: float | None
    kill_switch: KillSwitch | None
    crash_limit: int
    transactional: bool
    """Whether each attempt is one transaction with its inbox row: `transaction.py`."""

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function; if not it runs in a thread."""
        return _is_async(self.handler)

    def wants(self, topic: str) -> bool:
        """Whether its handler takes events of this topic."""
        for event_type in self.event_types:
            if event_type.__topic__ == topic:
                return True
        return self.takes_any and any(matches(pattern, topic) for pattern in self.patterns)

    def decode(self, envelope: Envelope) -> Event | AnyEvent:
        """The event as its handler takes it; raises InvalidEventError or UndecodableError."""
        for event_type in self.event_types:
            if event_type.__topic__ == envelope.topic:
                return envelope.decode(event_type)
        return AnyEvent(envelope.topic, envelope.version, envelope.value())


def declare_consumer(  # noqa: PLR0913 - what @plugin.consumer takes
    handler: Handler,
    events: Iterable[type[Event] | str],
    *,
    plugin: str,
    name: str | None,
    queue: str | None,
    retry: Retry,
    priorities: int | None,
    concurrency: int,
    prefetch: int | None,
    timeout: Duration | types.EllipsisType | None,
    kill_switch: KillSwitch | None,
    crash_limit: int,
    transactional: bool,
    middleware: Iterable[Middleware],
) -> Consumer:
    """Check a declaration and make the consumer; raises ConsumerError."""
    name = name or f"{plugin}.{getattr(handler, '__name__', 'handler')}"
    declaring = _Declaration(name, handler)
    declaring.check_signature()
    if transactional and not _is_async(handler):
        raise ConsumerError(
            f"consumer {name!r}: transactional=True needs async def; "
            "a plain function runs in a thread, which could outlive its transaction"
        )
    if transactional and (len(name) > _LONGEST_INBOX_NAME or name != name.rstrip()):
        raise ConsumerError(
            f"consumer {name[:40]!r}: the inbox keeps names of at most {_LONGEST_INBOX_NAME} "
            "characters with no blank at the end"
        )
    event_types, patterns, takes_any = declaring.sort_out(tuple(events))
    if priorities is not None and not 2 <= priorities <= _MOST_PRIORITIES:
        raise ConsumerError(
            f"consumer {name!r}: priorities={priorities} must be 2 to {_MOST_PRIORITIES}; "
            "each one costs the broker a queue inside"
        )
    if crash_limit < 1:
        raise ConsumerError(f"consumer {name!r}: crash_limit={crash_limit} must be 1 or more")
    if concurrency < 1:
        raise ConsumerError(f"consumer {name!r}: concurrency={concurrency} must be 1 or more")
    if prefetch is None:
        prefetch = min(_PREFETCH_FOR_EACH_HANDLER * concurrency, LARGEST_PREFETCH)
    if not 1 <= prefetch <= LARGEST_PREFETCH:
        raise ConsumerError(
            f"consumer {name!r}: prefetch={prefetch} must be 1 to {LARGEST_PREFETCH}"
        )
    return Consumer(
        name=name,
        plugin=plugin,
        queue=queue or name,
        handler=handler,
        middleware=tuple(middleware),
        event_types=event_types,
        patterns=patterns,
        takes_any=takes_any,
        retry=retry,
        priorities=priorities,
        concurrency=concurrency,
        prefetch=prefetch,
        timeout_s=declaring.timeout_s(timeout),
        kill_switch=kill_switch,
        crash_limit=crash_limit,
        transactional=transactional,
    )


def check_shared_queues(consumers: Iterable[Consumer]) -> None:
    """Consumers of one queue must want different topics, and agree on its priorities.

    A message of a shared queue goes to one consumer. Two that want the same topic would each miss
    some, so they need a queue each. Raises ConsumerError.
    """
    for one, other in combinations(consumers, 2):
        if one.name == other.name:
            raise ConsumerError(
                f"two consumers are named {one.name!r}; a name is a consumer's identity, "
                'give one of them another with name="…"'
            )
        if one.queue != other.queue:
            continue
        for pattern, another in ((a, b) for a in one.patterns for b in other.patterns):
            if overlap(pattern, another):
                raise ConsumerError(
                    f"consumers {one.name!r} and {other.name!r} share the queue {one.queue!r} and "
                    f"both want {pattern!r}: each event would reach only one of them. "
                    "Give one of them a queue of its own"
                )
        if one.priorities != other.priorities:
            raise ConsumerError(
                f"consumers {one.name!r} and {other.name!r} share the queue {one.queue!r} "
                f"but say priorities={one.priorities} and {other.priorities}"
            )


class _Declaration:
    """What can be read off a handler."""

    def __init__(self, name: str, handler: Handler) -> None:
        self.name = name
        self.handler = handler

    def check_signature(self) -> None:
        if not callable(self.handler):
            raise ConsumerError(f"consumer {self.name!r}: {self.handler!r} is no function")
        function = _function_of(self.handler)
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise ConsumerError(
                f"consumer {self.name!r}: its handler yields, so it would never run"
            )
        try:
            inspect.signature(self.handler).bind("event", "ctx")
        except TypeError as error:
            raise ConsumerError(
                f"consumer {self.name!r}: its handler must take two arguments, (event, ctx)"
            ) from error

    def sort_out(
        self, events: tuple[type[Event] | str, ...]
    ) -> tuple[tuple[type[Event], ...], tuple[str, ...], bool]:
        """The event types, the patterns to bind, and whether events of unknown type are taken."""
        annotated = self._annotated_types()
        named = tuple(event for event in events if not isinstance(event, str))
        patterns = tuple(event for event in events if isinstance(event, str))
        for event_type in named:
            self._check_type(event_type)
        if annotated is not None and (missing := [t for t in named if t not in annotated]):
            raise ConsumerError(
                f"consumer {self.name!r} wants {missing[0].__name__}, "
                f"but its handler takes {' | '.join(t.__name__ for t in annotated)}"
            )
        event_types = named if named and not patterns else annotated or named
        if not events and not event_types:
            raise ConsumerError(f"consumer {self.name!r} names no event type and no topic pattern")
        topics = [event_type.__topic__ for event_type in event_types]
        if len(set(topics)) < len(topics):
            raise ConsumerError(
                f"consumer {self.name!r} has two event types of one topic: {', '.join(topics)}"
            )
        try:
            bound = tuple(map(check_pattern, patterns)) + tuple(
                topic
                for topic in topics
                if not any(matches(pattern, topic) for pattern in patterns)
            )
        except InvalidTopicError as error:
            raise ConsumerError(f"consumer {self.name!r}: {error}") from error
        return event_types, bound, bool(patterns) and not annotated

    def timeout_s(self, timeout: Duration | types.EllipsisType | None) -> float | None:
        if _is_async(self.handler):
            if timeout is None:
                return None
            return DEFAULT_TIMEOUT_S if timeout is ... else parse_duration(timeout)
        if timeout is not ... and timeout is not None:
            raise ConsumerError(
                f"consumer {self.name!r}: a plain function runs in a thread that nothing can stop; "
                "make it async def, or remove timeout= and let the function keep its own time"
            )
        return None

    def _check_type(self, event_type: object) -> None:
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise ConsumerError(
                f"consumer {self.name!r}: {event_type!r} is no event type and no topic pattern"
            )
        if not event_type.__topic__:
            raise ConsumerError(
                f"consumer {self.name!r}: {event_type.__name__} has no topic; "
                f'declare it as class {event_type.__name__}(Event, topic="…")'
            )
        try:
            msgspec.json.Decoder(event_type)
        except (TypeError, NameError) as error:
            raise ConsumerError(
                f"consumer {self.name!r}: events of {event_type.__name__} can't be read: {error}"
            ) from error

    def _annotated_types(self) -> tuple[type[Event], ...] | None:
        """The event types that the handler's first parameter is annotated with, if any."""
        function = _function_of(self.handler)
        parameter = next(iter(inspect.signature(self.handler).parameters))
        annotation = getattr(function, "__annotations__", {}).get(parameter)
        # Read alone: the others may well name what exists for the type checker only.
        alone = types.SimpleNamespace(__annotations__={parameter: annotation})
        names = getattr(inspect.unwrap(function), "__globals__", {})
        try:
            hint = typing.get_type_hints(alone, globalns=names)[parameter]
        except (NameError, AttributeError, TypeError, SyntaxError):
            return None
        members = typing.get_args(hint) if _is_union(hint) else (hint,)
        found = tuple(
            t for t in members if isinstance(t, type) and issubclass(t, Event) and t.__topic__
        )
        return found or None


def _function_of(handler: Any) -> Callable[..., object]:
    while isinstance(handler, partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) else type(handler).__call__


def _is_union(hint: object) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
