"""`evworker dlq edit`: one letter's event is repaired, and goes back to work under a new id."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.dlq import selection
from evworker.cli.failures import UsageError, WrongError, say
from evworker.cli.json_input import fault_of
from evworker.cli.rendering import show_json_line
from evworker.cli.settings import Verb, did_you_mean

if TYPE_CHECKING:
    from evworker.broker import Envelope, Event, Letter

_ASSIGNMENT = re.compile(r"(?P<path>[^=]+)=(?P<value>.*)", re.DOTALL)


@click.command(cls=Verb)
@selection.queue_argument
@click.argument("id")
@click.option(
    "--set",
    "assignments",
    metavar="FIELD=VALUE",
    multiple=True,
    help="Set a field instead of opening the editor: total=9.5, customer.name=Ada, "
    "items.0.sku='\"007\"'. The value is JSON, or else text. Repeat it.",
)
@options.app("Modules whose event types the edited event is checked against.")
@click.option("--to", metavar="NAME", help="Put it into this queue instead of its own.")
@selection.dry_run
@options.broker_url
@options.as_json("One JSON object: 'id', 'edit_of', 'topic', 'to', 'data', 'dry_run'.")
def edit(
    queue: str,
    id: str,
    assignments: tuple[str, ...],
    app: tuple[str, ...],
    to: str | None,
    dry_run: bool,
    broker_url: str,
    as_json: bool,
) -> None:
    """Repair the event of the letter ID of QUEUE, and replay it.

    Opens the event's data in $EDITOR, or sets single fields. With -A it is checked against its
    event type first. The event goes back to work under a new id, which remembers the old one in the
    header evw-edit-of; the letter is removed once the broker has the new one. If nothing was
    changed, or the result is not valid, nothing is done.
    """
    name = selection.dead_letters_of(queue)
    target = selection.target_of(name, to)
    event_types = _event_types(app)
    letter = interrupts.run(_find(broker_url, name, id))
    event_type = event_types.get(letter.topic or "")
    if event_type is None:
        _tell_unchecked(app, letter.topic or "", event_types)
    text = _text_of(letter)
    if assignments:
        envelope = _checked(letter, _with_fields(letter, text, assignments), event_type)
    else:
        edited = _edited(letter, text, event_type)
        if edited is None:
            click.echo("nothing was changed, and nothing was done")
            return
        envelope = edited
    if not dry_run and not interrupts.run(_put(broker_url, name, letter, envelope, target)):
        raise WrongError(f"the letter {id!r} is no longer in {name}; nothing was done")
    _show(letter, envelope, target, dry_run=dry_run, as_json=as_json)


def _event_types(app: tuple[str, ...]) -> dict[str, type[Event]]:
    if not app:
        return {}
    from evworker.cli.loading import load

    return load(app).event_types


def _tell_unchecked(app: tuple[str, ...], topic: str, event_types: dict[str, type[Event]]) -> None:
    if app:
        why = f"no event type of {', '.join(app)} has the topic {topic!r}"
        say(f"note: the data is not checked, since {why}{did_you_mean(topic, event_types)}")
    else:
        say("note: the data is not checked; name the module of its event type with -A")


async def _find(broker_url: str, name: str, id: str) -> Letter:
    from evworker.broker import LetterFilter, browse_dead_letters

    async with selection.connected(broker_url) as connection:
        found = await browse_dead_letters(connection, name, 2, LetterFilter(ids=(id,)))
    if not found:
        raise WrongError(f"no letter in {name} has the id {id!r}")
    if len(found) > 1:
        say(f"note: several letters in {name} have the id {id!r}; this is about the oldest")
    return found[0]


async def _put(broker_url: str, name: str, letter: Letter, envelope: Envelope, to: str) -> bool:
    from evworker.broker import edit_dead_letter

    async with selection.connected(broker_url, changes=True) as connection:
        return await edit_dead_letter(connection, name, letter, envelope, to=to)


def _text_of(letter: Letter) -> str:
    """What is edited: the event's data, or else the whole body."""
    from evworker.broker import UndecodableError

    if letter.envelope is not None:
        from msgspec import json

        try:
            letter.envelope.value()
        except UndecodableError:
            return letter.envelope.data.decode("utf-8", "replace")
        return json.format(letter.envelope.data, indent=2).decode()
    try:
        return letter.body.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            "its bytes are no text: write it to a file with `evworker dlq export`, repair the body "
            "there, and bring it back with `evworker dlq import`"
        ) from error


def _checked(letter: Letter, text: bytes, event_type: type[Event] | None) -> Envelope:
    """The event as it will be; raises UsageError."""
    from evworker.broker import EventError, edited_envelope

    fault = fault_of(text)
    if fault is not None:
        raise UsageError(f"the event is {fault}; nothing was done")
    try:
        return edited_envelope(letter, text, event_type)
    except EventError as error:
        raise UsageError(f"{error}; nothing was done") from error


def _with_fields(letter: Letter, text: str, assignments: tuple[str, ...]) -> bytes:
    from msgspec import json

    if letter.envelope is None:
        raise UsageError("it can't be read as an event, so it has no fields: leave out --set")
    data: Any = json.decode(text)
    for assignment in assignments:
        found = _ASSIGNMENT.fullmatch(assignment)
        if found is None:
            raise click.UsageError(f"can't read --set {assignment!r}; write FIELD=VALUE")
        data = _with_field(data, found["path"].strip().split("."), _value(found["value"]))
    return json.encode(data)


def _with_field(data: Any, path: list[str], value: Any) -> Any:
    """The data with one field set, which need not have been there."""
    from msgspec import json

    if not path:
        return value
    name, *rest = path
    if isinstance(data, dict):
        return {**data, name: _with_field(data.get(name, {} if rest else None), rest, value)}
    if isinstance(data, list) and name.isdecimal() and int(name) < len(data):
        changed = list(data)
        changed[int(name)] = _with_field(data[int(name)], rest, value)
        return changed
    shown = json.encode(data).decode()
    raise click.UsageError(f"can't set {name!r} in {shown[:60]}: it has no such field")


def _value(text: str) -> Any:
    from msgspec import DecodeError, json

    try:
        return json.decode(text)
    except (DecodeError, UnicodeEncodeError):
        return text


def _edited(letter: Letter, text: str, event_type: type[Event] | None) -> Envelope | None:
    """What the user made of it in the editor; None when nothing was changed."""
    if not (sys.stdin.isatty() or os.environ.get("VISUAL") or os.environ.get("EDITOR")):
        raise click.UsageError("there is no terminal to edit on: set fields with --set")
    descriptor, name = tempfile.mkstemp(prefix="evworker-edit-", suffix=".json")
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(f"{text}\n")
    file, before = Path(name), text.strip().encode()
    try:
        while (changed := _after_editor(file)) != before:
            try:
                envelope = _checked(letter, changed, event_type)
            except UsageError as error:
                _ask_again(error)
            else:
                file.unlink()
                return envelope
    except BaseException:
        if file.read_bytes().strip() != before:
            say(f"your text is kept in {file}")
        else:
            file.unlink()
        raise
    file.unlink()
    return None


def _after_editor(file: Path) -> bytes:
    try:
        click.edit(filename=str(file))
    except click.ClickException as error:
        raise WrongError(
            f"{error.message}; nothing was done: name an editor that works in EDITOR, or set "
            "fields with --set"
        ) from error
    return file.read_bytes().strip()


def _ask_again(error: UsageError) -> None:
    """Return if the user will have another try; raise the error where nobody can be asked."""
    if not sys.stdin.isatty():
        raise error
    say(f"error: {error}")
    if not click.confirm("Edit it again?", default=True, err=True):
        raise WrongError("nothing was done") from error


def _show(letter: Letter, envelope: Envelope, to: str, *, dry_run: bool, as_json: bool) -> None:
    from msgspec import Raw, json

    if as_json:
        fields = {
            "id": envelope.id,
            "edit_of": letter.id,
            "topic": envelope.topic,
            "to": to,
            "data": Raw(envelope.data),
            "dry_run": dry_run,
        }
        show_json_line(fields)
        return
    if dry_run:
        click.echo(f"would put this into {to}, as an edit of {letter.id}:")
        click.echo(json.format(envelope.data, indent=2).decode())
    else:
        click.echo(f"{envelope.id}  {envelope.topic}  edit of {letter.id}, put into {to}")
