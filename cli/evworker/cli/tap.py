"""`evworker tap`: watch events go by, live."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.failures import say
from evworker.cli.rendering import escaped, on_terminal, printable, show_json_line
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker import Tapped


@click.command(cls=Verb)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after so many events.")
@options.broker_url
@options.exchange
@options.as_json(
    "A line an event: 'topic', 'id', 'time', 'key', 'source', 'version', 'data', 'received_at', "
    "and 'body' (text) of what can't be read as an event."
)
def tap(
    patterns: tuple[str, ...], limit: int | None, broker_url: str, exchange: str, as_json: bool
) -> None:
    """Watch events go by, live; no consumer receives less for it.

    PATTERN is a topic in which * stands for one word and # for any number of them; without any,
    all events are shown. What was published before the tap opened is not.

    While it is open, an event that no other queue is bound to is not kept in <exchange>.unrouted:
    a broker can't tell the tap from a consumer.

    \b
    evworker tap 'orders.*' 'payments.#'
    evworker tap --json | jq .data
    """  # noqa: D301 - click reads \b
    from evworker.broker import check_pattern
    from evworker.cli.logs import configure_logs

    configure_logs("warning", "console")
    for pattern in patterns:
        check_pattern(pattern)
    interrupts.run(_watch(broker_url, exchange, patterns or ("#",), limit, as_json=as_json))


async def _watch(
    broker_url: str, exchange: str, patterns: tuple[str, ...], limit: int | None, *, as_json: bool
) -> None:
    from evworker.broker import Connection
    from evworker.broker import tap as tap_events

    seen = 0
    async with Connection(broker_url, name="evworker tap") as connection:
        say(
            f"tapping {', '.join(patterns)} of {exchange!r}; meanwhile events that only the tap is "
            f"bound to are not kept in {exchange}.unrouted. Ctrl-C ends it."
        )
        async with aclosing(tap_events(connection, exchange, patterns)) as events:
            async for event in events:
                if as_json:
                    show_json_line(_fields(event))
                else:
                    _show(event)
                seen += 1
                if seen == limit:
                    return


def _fields(event: Tapped) -> dict[str, Any]:
    """The fields that `tap --json` promises."""
    from msgspec import Raw

    envelope = event.envelope
    fields: dict[str, Any] = {
        "topic": event.topic,
        "id": envelope.id if envelope else None,
        "time": envelope.time if envelope else None,
        "key": envelope.key if envelope else None,
        "source": envelope.source if envelope else None,
        "version": envelope.version if envelope else None,
        "data": Raw(envelope.data) if envelope else None,
        "received_at": event.received_at,
    }
    if envelope is None:
        fields["body"] = escaped(event.body)
    return fields


def _show(event: Tapped) -> None:
    envelope = event.envelope
    time = envelope.time if envelope else event.received_at
    topic = printable(event.topic)
    click.echo(
        "  ".join(
            (
                f"{time.astimezone():%H:%M:%S}.{time.microsecond // 1000:03}",
                click.style(topic, fg="cyan") if on_terminal() else topic,
                printable(envelope.id) if envelope else "-",
                f"key={printable(envelope.key)}" if envelope and envelope.key else "-",
                escaped(envelope.data if envelope else event.body),
            )
        )
    )
