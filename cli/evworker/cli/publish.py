"""`evworker publish`: one event, the same event many times, or a stream of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from evworker.cli import database, interrupts, options
from evworker.cli.failures import (
    BrokerFailedError,
    DatabaseFailedError,
    UsageError,
    WrongError,
    say,
)
from evworker.cli.json_input import (
    LONGEST_LINE_BYTES,
    fault_of,
    open_stream,
    read_data,
    read_lines,
)
from evworker.cli.rendering import counted, show_json_line
from evworker.cli.settings import Verb, did_you_mean

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from evworker.broker import Envelope, Event, Publisher
    from evworker.cli.sending import Bar, Window
    from evworker.cli.writing import Batches

SOURCE = "evworker/publish"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is asked for, beside the data."""

    topic: str | None
    key: str | None
    priority: int | None
    id: str | None
    count: int
    rate: float | None
    event_types: Mapping[str, type[Event]]
    via_outbox: bool
    as_json: bool

    @property
    def done(self) -> str:
        """What happens to the events here, for people and as the name of a field."""
        return "written" if self.via_outbox else "published"

    def envelope(self, body: bytes) -> Envelope:
        """The data in an envelope of its own, valid as far as its type is known.

        Raises UndecodableError or InvalidEventError.
        """
        from msgspec import json
        from msgspec.structs import replace

        from evworker.broker import Envelope
        from evworker.broker.envelope import UNKNOWN_SOURCE

        envelope = Envelope.parse(body, topic=self.topic)
        changes: dict[str, object] = {"data": json.format(envelope.data, indent=-1)}
        if envelope.source == UNKNOWN_SOURCE:
            changes["source"] = SOURCE
        if self.key is not None:
            changes["key"] = self.key
        if self.id is not None:
            changes |= {"id": self.id, "correlation_id": self.id}
        event_type = self.event_types.get(envelope.topic)
        if event_type is not None:
            envelope.decode(event_type)
            changes["version"] = envelope.version or event_type.__version__
        return replace(envelope, **changes)


@click.command(cls=Verb)
@click.argument("topic", required=False)
@click.argument("data", required=False, metavar="[DATA|@FILE|-]")
@click.option(
    "--ndjson",
    metavar="FILE|-",
    help="Publish each line of a file or of stdin: with TOPIC its data, without TOPIC a "
    "CloudEvents document of which 'type' and 'data' must be there.",
)
@options.app("Modules whose event types the data is checked against before anything is sent.")
@click.option(
    "--key", metavar="TEXT", help="The ordering key, which CloudEvents calls the subject."
)
@click.option(
    "--priority",
    type=click.IntRange(0, 255),
    metavar="N",
    help="0 to 255; higher ones overtake on priority queues.",
)
@click.option("--id", metavar="TEXT", help="The event's id, to repeat an earlier publish safely.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Publish it so often, each with an id of its own.",
)
@click.option(
    "--rate",
    type=options.Rate(),
    metavar="R",
    help="At most so many events a second, spread evenly.",
)
@options.broker_url
@options.exchange
@click.option(
    "--via-outbox",
    is_flag=True,
    help="Write into the outbox of the database instead; a relay publishes from there.",
)
@options.database_url
@options.as_json(
    "One JSON object: 'id', 'topic'; for several events 'published', 'refused', 'seconds', and "
    "with --via-outbox 'written' instead of 'published'."
)
def publish(  # noqa: PLR0917 - click hands them over by name
    topic: str | None,
    data: str | None,
    ndjson: str | None,
    app: tuple[str, ...],
    key: str | None,
    priority: int | None,
    id: str | None,
    count: int,
    rate: float | None,
    broker_url: str,
    exchange: str,
    via_outbox: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Publish an event, or a stream of them; done means that the broker has them on disk.

    DATA is the event as JSON, @FILE reads it from a file and - from stdin; without any it is {}.
    With -A the data is checked against the event type of its topic before anything is sent.

    Of a stream, lines that are no valid events are told on stderr, the others are published, and
    the exit code is 1.

    With --via-outbox done means committed in the outbox, the broker need not be there, and a stream
    is committed every few hundred events.

    \b
    evworker publish orders.placed '{"order_id": "42", "total": "9.90"}' -A shop.billing
    evworker publish orders.placed @order.json --count 1000 --rate 50
    zcat orders.ndjson.gz | evworker publish --ndjson -
    """  # noqa: D301 - click reads \b
    _check_usage(topic, data, ndjson, id, count)
    from evworker.cli.logs import configure_logs

    configure_logs("warning", "console")
    request = _Request(
        topic=topic,
        key=key,
        priority=priority,
        id=id,
        count=count,
        rate=rate,
        event_types=_event_types(app, topic),
        via_outbox=via_outbox,
        as_json=as_json,
    )
    way = _outbox(database_url) if via_outbox else _broker(broker_url, exchange)
    if ndjson is not None:
        publishing = _publish_stream(way, request, ndjson)
    else:
        publishing = _publish_data(way, request, *read_data(data))
    interrupts.run(publishing)


def _check_usage(
    topic: str | None, data: str | None, ndjson: str | None, id: str | None, count: int
) -> None:
    if ndjson is None and topic is None:
        raise click.UsageError("name the TOPIC to publish to, or a stream with --ndjson")
    if ndjson is not None and (data is not None or id is not None or count > 1):
        raise click.UsageError("--ndjson brings its own data: leave out DATA, --id and --count")
    if id is not None and count > 1:
        raise click.UsageError("--id and --count exclude each other: an id is one event's own")
    if topic is not None:
        from evworker.broker import check_topic

        check_topic(topic)


def _event_types(app: tuple[str, ...], topic: str | None) -> Mapping[str, type[Event]]:
    if not app:
        return {}
    from evworker.cli.loading import load

    event_types = load(app).event_types
    if topic is not None and topic not in event_types:
        say(
            f"note: no event type of {', '.join(app)} has the topic {topic!r}, so the data is not "
            f"checked{did_you_mean(topic, event_types)}"
        )
    return event_types


Way = AbstractAsyncContextManager["Publisher | AsyncEngine"]


@asynccontextmanager
async def _broker(broker_url: str, exchange: str) -> AsyncIterator[Publisher]:
    from evworker.broker import Publisher

    async with Publisher(broker_url, exchange=exchange, source=SOURCE) as publisher:
        yield publisher


@asynccontextmanager
async def _outbox(database_url: str | None) -> AsyncIterator[AsyncEngine]:
    async with database.opened(database_url) as engine:
        from evworker.broker.database.schema import check_tables

        # Before anything is read: stdin can't be read twice.
        await check_tables(engine)
        yield engine


async def _publish_data(way: Way, request: _Request, body: bytes, name: str) -> None:
    """Publish what DATA means, `--count` times."""
    from evworker.broker import EventError
    from evworker.cli.sending import Bar

    try:
        envelope = request.envelope(body)
    except EventError as error:
        fault = fault_of(body)
        message = f"{name} is {fault}" if fault else f"{error}; nothing was published"
        raise UsageError(message) from error
    async with way as target:
        if request.count == 1:
            await _publish_one(target, envelope, request)
            return
        with Bar(request.count) as bar:
            sent = _Stream(request, target, bar)
            for number in range(1, request.count + 1):
                await sent.publish(number, body)
                bar.advance(1, sent.published)
            await sent.finished()
    sent.show_summary()


async def _publish_one(
    target: Publisher | AsyncEngine, envelope: Envelope, request: _Request
) -> None:
    from evworker.broker import Publisher

    if isinstance(target, Publisher):
        await target.publish_envelope(envelope, priority=request.priority)
    else:
        window = _window(target, request, refuse=_refuse_it)
        await window.publish(1, envelope)
        await window.drained()
    if request.as_json:
        show_json_line({"id": envelope.id, "topic": envelope.topic})
    else:
        click.echo(f"{envelope.id}  {envelope.topic}")


async def _publish_stream(way: Way, request: _Request, name: str) -> None:
    """Publish each line of a file or a pipe."""
    from evworker.cli.sending import Bar

    descriptor, size = open_stream(name)
    async with way as target:
        with Bar(size) as bar:
            sent = _Stream(request, target, bar)
            try:
                async for line in read_lines(descriptor):
                    await sent.publish(line.number, line.body)
                    bar.advance(line.size, sent.published)
            except asyncio.CancelledError:
                # Ctrl-C: what is on its way is awaited, so that the number is true.
                await sent.finished()
                say(f"interrupted; {counted(sent.published, 'event')} {request.done}")
                raise
            except OSError as error:
                raise UsageError(f"can't read {name!r}: {error.strerror}") from error
            await sent.finished()
    sent.show_summary()


def _window(
    target: Publisher | AsyncEngine,
    request: _Request,
    refuse: Callable[[int, Exception], None],
) -> Window | Batches:
    from evworker.broker import Publisher

    if isinstance(target, Publisher):
        from evworker.cli.sending import Window

        return Window(target, priority=request.priority, rate=request.rate, refuse=refuse)
    from evworker.cli.writing import Batches

    return Batches(target, priority=request.priority, rate=request.rate, refuse=refuse)


def _refuse_it(_number: int, error: Exception) -> None:
    raise error


class _Stream:
    """Many events on their way to the broker, and the account of them."""

    def __init__(self, request: _Request, target: Publisher | AsyncEngine, bar: Bar) -> None:
        self._request = request
        self._bar = bar
        self._started = time.monotonic()
        self._refused = 0
        self._window = _window(
            target, request, refuse=lambda number, error: self._refuse(number, str(error))
        )

    @property
    def published(self) -> int:
        return self._window.published

    async def publish(self, number: int, body: bytes | None) -> None:
        """Start to publish it once there is room, or tell why it is no event."""
        from evworker.broker import BrokerError, EventError
        from evworker.broker.errors import DatabaseError

        if body is None:
            self._refuse(number, f"longer than {LONGEST_LINE_BYTES:,} bytes")
            return
        try:
            envelope = self._request.envelope(body)
        except EventError as error:
            self._refuse(number, fault_of(body) or str(error))
            return
        try:
            await self._window.publish(number, envelope)
        except (BrokerError, DatabaseError):
            await self.finished()

    async def finished(self) -> None:
        """Await what is still out; tells how far it came when the broker or database failed."""
        from evworker.broker import BrokerError
        from evworker.broker.errors import DatabaseError

        window = self._window
        try:
            await window.drained()
        except (BrokerError, DatabaseError) as error:
            failure = BrokerFailedError if isinstance(error, BrokerError) else DatabaseFailedError
            text = f"{error}\n{counted(self.published, 'event')} {self._request.done} before; "
            if uncertain := getattr(window, "uncertain", 0):
                text += f"the next {uncertain:,} may be {self._request.done} as well, or not; "
            raise failure(f"{text}go on with number {window.first_unconfirmed}") from error

    def show_summary(self) -> None:
        """The result on stdout; raises WrongError when something was refused."""
        seconds = time.monotonic() - self._started
        if self._request.as_json:
            result = {
                self._request.done: self.published,
                "refused": self._refused,
                "seconds": seconds,
            }
            show_json_line(result)
        else:
            rate = f", {self.published / seconds:,.0f} a second" if self.published else ""
            events = counted(self.published, "event")
            click.echo(f"{self._request.done} {events} in {seconds:.1f} s{rate}")
        if self._refused:
            raise WrongError(f"{counted(self._refused, 'line')} refused; each is told above")

    def _refuse(self, number: int, reason: str) -> None:
        self._refused += 1
        self._bar.say(f"line {number}: {reason}")
