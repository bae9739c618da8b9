"""A dead letter, as people read it and as programs do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click
import msgspec

from evworker.broker import Letter
from evworker.cli.rendering import clock_time, escaped, on_terminal, printable

# The broker counts on each letter how often somebody took it, which is every look.
_LOOKS = ("x-delivery-count", "x-acquired-count")

_LABEL = 10
_RULE = 72


def as_json(letter: Letter) -> dict[str, Any]:
    """The fields that `dlq show --json` promises."""
    failure = letter.failure
    return {
        "position": letter.position,
        "id": letter.id,
        "topic": letter.topic,
        "reason": failure.reason,
        "error_type": failure.error_type,
        "error_message": failure.error_message,
        "traceback": failure.traceback,
        "attempts": failure.attempts,
        "first_failed_at": failure.first_failed_at,
        "failed_at": failure.failed_at,
        "consumer": failure.consumer,
        "host": failure.host,
        "origin_exchange": failure.origin_exchange,
        "origin_routing_key": failure.origin_routing_key,
        "group": letter.group,
        "frame": letter.frame,
        "replays": letter.replays,
        "history": letter.history,
        "edit_of": letter.edit_of,
        "content_type": letter.content_type,
        "headers": {
            name: _plain(value) for name, value in letter.headers.items() if name not in _LOOKS
        },
        "envelope": _document(letter),
        "body": None if letter.envelope else escaped(letter.body),
    }


def show(queue: str, letters: Iterable[Letter]) -> None:
    """Each letter under a heading: the failure, its history, the event and the trace."""
    for letter in letters:
        _show_heading(f"{queue}  letter {letter.position}")
        for label, text in _lines(letter):
            click.echo(_labelled(label, text))
        click.echo()


def _lines(letter: Letter) -> Iterable[tuple[str, str]]:
    failure = letter.failure
    yield "event", f"{letter.topic or 'of unknown topic'}  {letter.id or 'without id'}"
    yield "reason", f"{failure.reason}: {_MEANING[failure.reason]}"
    if failure.error_type:
        yield "error", f"{failure.error_type}: {failure.error_message or ''}"
    yield "attempts", str(failure.attempts)
    if failure.failed_at:
        first = failure.first_failed_at
        earlier = f", first {clock_time(first)}" if first and first != failure.failed_at else ""
        yield "failed", f"{clock_time(failure.failed_at)}{earlier}"
    if failure.consumer or failure.host:
        yield "consumer", f"{failure.consumer or '-'} on {failure.host or '-'}"
    yield "group", f"{letter.group}{f'  in {letter.frame}' if letter.frame else ''}"
    if letter.edit_of:
        yield "edit of", letter.edit_of
    if letter.history:
        yield "history", "\n".join(_remembered(letter))
    if failure.origin_routing_key:
        exchange = failure.origin_exchange or "(default)"
        yield "origin", f"exchange {exchange}, routing key {failure.origin_routing_key}"
    if failure.traceback:
        yield "trace", failure.traceback.rstrip()
    document = _document(letter)
    if document is None:
        yield "body", f"{len(letter.body):,} bytes that are no event: {escaped(letter.body)}"
        return
    data = document.pop("data", msgspec.Raw(b"null"))
    yield "envelope", _indented(msgspec.json.encode(document))
    yield "data", _indented(bytes(data))


def _document(letter: Letter) -> dict[str, msgspec.Raw] | None:
    """The CloudEvents document, less the ids of an event that has none."""
    if letter.envelope is None:
        return None
    document = msgspec.json.decode(letter.envelope.encode(), type=dict[str, msgspec.Raw])
    if letter.id is None:
        # They were made as it was read, and are others at the next look.
        made = document.pop("id")
        if document.get("correlationid") == made:
            document.pop("correlationid")
    return document


def _remembered(letter: Letter) -> Iterable[str]:
    """How it died before each replay."""
    if letter.replays > len(letter.history):
        yield f"replayed {letter.replays:,} times; the last {len(letter.history)}:"
    for death in letter.history:
        error = f" {death.error_type}: {death.error or ''}" if death.error_type else ""
        yield f"{clock_time(death.at)}  {death.reason}{error}"
        yield f"{clock_time(death.replayed_at)}  replayed"


_MEANING = {
    "failed": "every attempt of its retry policy failed",
    "given-up": "its error is one that the policy does not retry",
    "undecodable": "its bytes can't be read as an event",
    "invalid": "it is not what its event type promises",
    "unwanted": "no consumer of the queue wants its topic",
    "crashed": "it came back so often without being settled that it must kill its workers",
    "unknown": "someone other than evworker put it there",
}


def _indented(document: bytes) -> str:
    return msgspec.json.format(document, indent=2).decode()


def _show_heading(text: str) -> None:
    rule = "─" * max(3, _RULE - len(text) - 4)
    click.echo(click.style(f"── {printable(text)} {rule}", bold=True) if _coloured() else text)


def _labelled(label: str, text: str) -> str:
    """The text beside its label; further lines stay in its column."""
    margin = " " * (_LABEL + 2)
    lines = printable(text).replace("\n", f"\n{margin}")
    name = f"  {label:<{_LABEL}}"
    return f"{click.style(name, fg='cyan') if _coloured() else name}{lines}"


def _coloured() -> bool:
    return on_terminal()


def _plain(value: object) -> object:
    """A header as JSON holds it; others may send tables, times and bytes."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes | bytearray):
        return escaped(bytes(value))
    if value is None or isinstance(value, str | int | float | datetime):
        return value
    return str(value)
