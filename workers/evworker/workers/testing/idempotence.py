"""Does it matter how often, and how disturbed, an event comes? It is tried in every bad way.

Each way has a world of its own: a broker, a worker, and a database that is made afresh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evworker.broker import ConfigurationError, Envelope, Event
from evworker.workers.plugin import Plugin
from evworker.workers.testing.records import said
from evworker.workers.testing.watching import only
from evworker.workers.testing.worker import TestWorker

if TYPE_CHECKING:
    from evworker.workers.testing.databases import Fresh, Tables

Way = Callable[[TestWorker, Sequence[Envelope]], Awaitable[None]]


async def _undisturbed(worker: TestWorker, events: Sequence[Envelope]) -> None:
    await worker.publish_many(events)
    for record in worker.unrouted:
        if record.cause is None:
            raise ConfigurationError(f"no consumer wants {record.topic}, so nothing is tried")


async def _twice(worker: TestWorker, events: Sequence[Envelope]) -> None:
    worker.deliver_twice()
    await worker.publish_many(events)


async def _again(worker: TestWorker, events: Sequence[Envelope]) -> None:
    await worker.publish_many(events)
    await worker.publish_many(events)


def _crashing(step: Callable[[TestWorker, str], None], consumer: str) -> Way:
    async def way(worker: TestWorker, events: Sequence[Envelope]) -> None:
        due = worker._crashes.due  # noqa: SLF001 - a crash that finds nothing here is no mistake
        for event in events:
            if not due:  # else no event has come to this consumer yet
                step(worker, consumer)
            await worker.publish(event)
        due.clear()

    return way


async def _reordered(worker: TestWorker, events: Sequence[Envelope]) -> None:
    worker.reorder()
    await worker.publish_many(events)


def _ways(consumers: Collection[str], *, several_events: bool) -> Iterator[tuple[str, Way]]:
    """Every bad way, with a crash at each of these consumers."""
    yield "delivered twice at once", _twice
    yield "delivered again when all was settled", _again
    for name in consumers:
        of = f" of {name}" if len(consumers) > 1 else ""
        before, after = TestWorker.crash_before_ack, TestWorker.crash_after_commit
        yield f"the worker crashed before the commit and the ack{of}", _crashing(before, name)
        yield f"the worker crashed after the commit, before the ack{of}", _crashing(after, name)
    if several_events:
        yield "in reverse order", _reordered


@dataclass
class _Left:
    """What a run has left behind."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    published: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    consumers: list[str] = field(default_factory=list)
    """Those that have handled something. Not compared."""

    def differences(self, other: _Left) -> Iterator[str]:
        """What the other has left that this one has not, and the other way round."""
        for table in sorted({*self.rows, *other.rows}):
            yield from _different(f"table {table}", self.rows.get(table), other.rows.get(table))
        yield from _different("published events", self.published, other.published)
        yield from _different("dead letters", self.dead_letters, other.dead_letters)


async def assert_idempotent(
    handler: Plugin | Callable[..., Any],
    *events: Event,
    database: Fresh | None = None,
    tables: Tables | None = None,
    ignore: Collection[str] = (),
    broker: str | None = None,
) -> None:
    """Handle the events once, then in each bad way, and compare what is left each time.

    The ways: delivered twice at once; delivered again later; at each consumer that handles
    something, a crash before the commit, and one after the commit and before the ack; and, of
    several events, in reverse order. What is compared
    are the rows of all tables but evworker's own, the events that were published (each id once,
    since who consumes them tells them by it), and the dead letters.

    `handler` is a plugin, or one handler, whose plugin must be in the same module. `tables` makes
    the tables of each SQLite file; on another database `database` is a function that returns an
    async context manager of an empty one's URL or engine. `ignore` names what differs by nature,
    such as times: columns, as ``column`` or ``table.column``, and fields of published events, as
    ``field`` or ``topic.field``.

    Raises AssertionError that shows each way and its differences, and the handler's own error if
    it fails undisturbed.
    """
    __tracebackhide__ = True
    if not events:
        raise ConfigurationError("assert_idempotent needs an event to try")
    plugin = handler if isinstance(handler, Plugin) else only(handler)
    envelopes = [Envelope.wrap(event, source="test") for event in events]

    async def left_by(way: Way) -> _Left:
        __tracebackhide__ = True
        async with TestWorker(plugin, broker=broker, database=database, tables=tables) as worker:
            await way(worker, envelopes)
            return await _left_in(worker, ignore)

    undisturbed = await left_by(_undisturbed)
    found = {}
    for name, way in _ways(undisturbed.consumers, several_events=len(events) > 1):
        try:
            differences = [*undisturbed.differences(await left_by(way))]
        except AssertionError:
            raise
        except Exception as error:
            error.add_note(f"raised when {name}, and not when undisturbed")
            raise
        if differences:
            found[name] = differences
    if found:
        told = "\n".join(
            "\n".join([f"{name}:", *(f"  {line}" for line in differences)])
            for name, differences in found.items()
        )
        subject = plugin.consumers[0].name if len(plugin.consumers) == 1 else plugin.name
        what = ", ".join(map(said, events))
        raise AssertionError(f"{subject} is not idempotent for {what}\n\n{told}")


async def _left_in(worker: TestWorker, ignore: Collection[str]) -> _Left:
    left = _Left(
        consumers=[*dict.fromkeys(one.consumer for one in worker.consumed if one.consumer)]
    )
    for record in {one.envelope.id: one for one in worker.published}.values():
        if record.cause is not None:
            key = f" key={record.envelope.key!r}" if record.envelope.key else ""
            event = said(record.event, ignore=ignore)
            left.published[f"{record.topic} {event}{key}"] += 1
    for letter in worker.dead_letters:
        left.dead_letters[f"{letter.consumer} {letter.reason}: {type(letter.error).__name__}"] += 1
    if worker.has_database:
        from evworker.workers.testing.snapshot import rows_in  # noqa: PLC0415 - SQLAlchemy

        left.rows = await rows_in(worker.engine, ignore=ignore)
    return left


def _different(
    what: str, once: Counter[str] | None, disturbed: Counter[str] | None
) -> Iterator[str]:
    once, disturbed = once or Counter(), disturbed or Counter()
    missing, more = once - disturbed, disturbed - once
    if missing or more:
        yield f"{what}:"
        yield from (f"  - {line}{_times(count)}" for line, count in sorted(missing.items()))
        yield from (f"  + {line}{_times(count)}" for line, count in sorted(more.items()))


def _times(count: int) -> str:
    return f"  ({count} times)" if count > 1 else ""
