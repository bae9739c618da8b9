"""Letters as lines: each a JSON object that holds all it takes to restore the message.

A body that is UTF-8 is text, any other base64: both come back byte for byte.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncIterable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from aiormq import spec

from evworker.broker.deadletters.audit import Account, audited
from evworker.broker.deadletters.copying import resent, sendable_headers
from evworker.broker.deadletters.filters import EVERYTHING, LetterFilter
from evworker.broker.deadletters.letter import Letter
from evworker.broker.deadletters.putting import putting
from evworker.broker.deadletters.taking import taking
from evworker.broker.errors import HeadersError, MessageTooLargeError, UndecodableError
from evworker.broker.failure import FAILURE_HEADERS, Failure
from evworker.broker.headers import kept_headers

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from evworker.broker.connection import Connection

FORMAT = "evworker.letter/1"

_CHUNK_BYTES = 256 * 1024
_CHUNK_LETTERS = 500

_PROPERTIES = (
    *("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id"),
    *("reply_to", "expiration", "message_id", "timestamp", "message_type", "user_id", "app_id"),
)


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One letter, as it is exported."""

    format: str
    queue: str
    id: str | None = None
    topic: str | None = None
    reason: str | None = None
    """These three are there to be read, and mean nothing to an import."""
    origin_exchange: str | None = None
    origin_routing_key: str | None = None
    properties: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    body: str | None = None
    body_base64: str | None = None

    def content(self) -> bytes:
        """The body's bytes; raises UndecodableError."""
        if self.body_base64 is None:
            return (self.body or "").encode()
        try:
            return base64.b64decode(self.body_base64, validate=True)
        except ValueError as error:
            raise UndecodableError(f"its body_base64 is not base64: {error}") from error


@dataclass(slots=True)
class Exported:
    """What an export has written."""

    letters: int = 0
    removed: int = 0


@dataclass(slots=True)
class Imported:
    """What an import has put into the queue."""

    letters: int = 0
    refused: int = 0
    last_line: int = 0
    """The number of the last line that was read."""


async def export_dead_letters(
    connection: Connection,
    queue: str,
    write: Callable[[bytes], None],
    letters: LetterFilter = EVERYTHING,
    *,
    limit: int | None = None,
    remove: bool = False,
    on_progress: Callable[[int], None] = lambda _exported: None,
) -> Exported:
    """Write letters as lines, oldest first.

    `write` is called in a thread, with some hundred lines at a time. With `remove` these letters
    are removed once it has returned, so it must have put them on disk by then; else all stay where
    they are. Raises QueueNotFoundError, BrokerError, or what `write` raises.
    """
    exported = Exported()
    about = {"filter": str(letters), "limit": limit}
    with audited("export", queue, **about) if remove else nullcontext(Account()) as account:
        async with taking(connection, queue, to_remove=remove) as held:
            lines: list[bytes] = []
            written: list[DeliveredMessage] = []

            async def flush() -> None:
                await asyncio.to_thread(write, b"".join(lines))
                exported.letters += len(lines)
                if remove:
                    for message in written:
                        held.remove(message)
                    exported.removed = account.count = exported.letters
                lines.clear()
                written.clear()
                on_progress(exported.letters)

            size = 0
            while exported.letters + len(lines) != limit:
                if (message := await held.next()) is None:
                    break
                letter = Letter.read(message, held.position)
                if letters.matches(letter):
                    lines.append(to_line(letter, queue))
                    written.append(message)
                    size += len(lines[-1])
                if size > _CHUNK_BYTES or len(lines) == _CHUNK_LETTERS:
                    await flush()
                    size = 0
            if lines:
                await flush()
    return exported


async def import_dead_letters(
    connection: Connection,
    queue: str,
    lines: AsyncIterable[tuple[int, bytes | None]],
    *,
    limit: int | None = None,
    refuse: Callable[[int, str], None] = lambda _number, _why: None,
    on_progress: Callable[[int], None] = lambda _imported: None,
) -> Imported:
    """Put exported letters into the queue, in the order of their numbered lines.

    A line that is no letter, or that the broker would not take, goes to `refuse`, and the others
    are imported. The broker's own headers are not restored, since it acts upon them; what they told
    of a crash is. Raises QueueNotFoundError, or BrokerError, when those counted are in the queue.
    """
    imported = Imported()

    with audited("import", queue, limit=limit) as account:

        def confirmed(_number: int) -> None:
            imported.letters += 1
            account.count += 1
            on_progress(imported.letters)

        put = 0
        async with putting(connection, queue, confirmed) as copies:
            async for number, line in lines:
                if put == limit:
                    break
                imported.last_line = number
                try:
                    body, properties = from_line(line)
                    await copies.put(body, properties, number)
                    put += 1
                except (UndecodableError, HeadersError, MessageTooLargeError) as error:
                    imported.refused += 1
                    refuse(number, str(error))
        account.details["refused"] = imported.refused
    return imported


def to_line(letter: Letter, queue: str) -> bytes:
    """The letter as a line of NDJSON, with its line end."""
    failure = letter.failure
    properties = {
        name: _jsonable(value)
        for name in _PROPERTIES
        if (value := getattr(letter.properties, name)) not in (None, "")
    }
    line = Line(
        format=FORMAT,
        queue=queue,
        id=letter.id,
        topic=letter.topic,
        reason=failure.reason,
        origin_exchange=failure.origin_exchange,
        origin_routing_key=failure.origin_routing_key,
        properties=properties,
        headers={name: _jsonable(value) for name, value in letter.headers.items()},
    )
    try:
        line.body = letter.body.decode()
    except UnicodeDecodeError:
        line.body_base64 = base64.b64encode(letter.body).decode()
    return msgspec.json.encode(line) + b"\n"


def from_line(line: bytes | None) -> tuple[bytes, spec.Basic.Properties]:
    """The message that a line restores; raises UndecodableError."""
    if line is None:
        raise UndecodableError("the line is too long to be a letter")
    read = read_line(line)
    try:
        headers = {name: _restored(value) for name, value in read.headers.items()}
        values = {name: _restored(read.properties.get(name)) for name in _PROPERTIES}
        old = spec.Basic.Properties(**{**values, "headers": headers})
        properties = resent(old, _import_headers(old, headers, read))
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise UndecodableError(f"its properties can't be restored: {error}") from error
    return read.content(), properties


def read_line(line: bytes) -> Line:
    """What stands in a line; raises UndecodableError."""
    try:
        read = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableError(f"not a letter: {error}") from error
    if read.format != FORMAT:
        raise UndecodableError(f"the format {read.format!r} is not read; export writes {FORMAT!r}")
    return read


def _import_headers(
    old: spec.Basic.Properties, headers: dict[str, Any], read: Line
) -> dict[str, Any]:
    kept = kept_headers(headers)
    failure = Failure.from_headers(headers)
    if failure.reason == "crashed":
        # The broker's word for that is among what it must not get again.
        kept = {name: value for name, value in kept.items() if name not in FAILURE_HEADERS}
        kept |= failure.to_headers()
    for name, value in (
        ("evw-origin-exchange", read.origin_exchange),
        ("evw-origin-routing-key", read.origin_routing_key),
        ("evw-user-id", old.user_id),
    ):
        if value is not None:
            kept.setdefault(name, value)
    return sendable_headers(kept)


# What JSON has no word for is an object with one name, which begins with $.


def _jsonable(value: Any) -> Any:  # noqa: PLR0911 - a table
    match value:
        case bytes() | bytearray():
            return {"$bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"$time": value.isoformat()}
        case Decimal():
            return {"$decimal": str(value)}
        case float() if not math.isfinite(value):
            return {"$float": repr(value)}
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list():
            return [_jsonable(inner) for inner in value]
        case dict():
            table = {str(name): _jsonable(inner) for name, inner in value.items()}
            return {"$table": table} if any(name.startswith("$") for name in table) else table
    return value


def _restored(value: Any) -> Any:  # noqa: PLR0911 - a table
    match value:
        case {"$bytes": str(text), **rest} if not rest:
            return bytearray(base64.b64decode(text, validate=True))
        case {"$time": str(text), **rest} if not rest:
            return datetime.fromisoformat(text)
        case {"$decimal": str(text), **rest} if not rest:
            return Decimal(text)
        case {"$float": str(text), **rest} if not rest:
            return float(text)
        case {"$table": dict(table), **rest} if not rest:
            return {name: _restored(inner) for name, inner in table.items()}
        case dict():
            return {name: _restored(inner) for name, inner in value.items()}
        case list():
            return [_restored(inner) for inner in value]
    return value


_decoder = msgspec.json.Decoder(Line)
