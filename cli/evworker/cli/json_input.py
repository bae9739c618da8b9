"""JSON that a user hands in, as an argument, a file or a stream, and what is wrong with it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

from evworker.cli.failures import UsageError

LONGEST_LINE_BYTES = 128 * 1024 * 1024
"""The largest message that any RabbitMQ takes by default; a longer line is skipped, not kept."""

_CHUNK_BYTES = 64 * 1024
_CHUNKS_AHEAD = 4
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a stream, without its end."""

    number: int
    body: bytes | None
    """None when it is longer than LONGEST_LINE_BYTES."""
    size: int
    """How far it brings the reader on, in bytes."""


def read_data(argument: str | None) -> tuple[bytes, str]:
    """The bytes that a DATA argument means, and what to call them; no DATA is ``{}``."""
    if argument is None:
        return b"{}", "DATA"
    if argument == "-":
        return _without_mark(sys.stdin.buffer.read()), "stdin"
    if argument.startswith("@"):
        try:
            return _without_mark(Path(argument[1:]).read_bytes()), argument[1:]
        except OSError as error:
            raise UsageError(f"can't read {argument[1:]!r}: {error.strerror}") from error
    return os.fsencode(argument), "DATA"


def fault_of(body: bytes) -> str | None:
    """What keeps the bytes from being JSON, and where; None when they are JSON."""
    if not body.strip():
        return "empty"
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{body[error.start]:02x} at {_place(body[: error.start])}"
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        fault = error.msg.removesuffix(" starting at").removesuffix(" at")
        return f"not JSON: {_place(text[: error.pos].encode())}: {fault[0].lower()}{fault[1:]}"
    except RecursionError:
        return "nested too deeply"
    return None


def open_stream(name: str) -> tuple[int, int | None]:
    """The descriptor of a file, or of stdin for ``-``; with its size, where it has one."""
    try:
        descriptor = sys.stdin.fileno() if name == "-" else os.open(name, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"can't read {name!r}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"can't read {name!r}: it is a directory")
    return descriptor, status.st_size if stat.S_ISREG(status.st_mode) else None


async def read_lines(descriptor: int) -> AsyncIterator[Line]:
    """The lines of a stream that may never end, blank ones left out; a few chunks are read ahead.

    A thread reads, because reading a pipe blocks. It is a daemon on a bare descriptor, so that one
    that waits for input for ever keeps nobody from leaving.
    """
    chunks: asyncio.Queue[list[Line] | OSError | None] = asyncio.Queue(_CHUNKS_AHEAD)
    loop = asyncio.get_running_loop()

    def hand_over(chunk: list[Line] | OSError | None) -> None:
        asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()

    threading.Thread(target=_read, args=(descriptor, hand_over), daemon=True).start()
    while (chunk := await chunks.get()) is not None:
        if isinstance(chunk, OSError):
            raise chunk
        for line in chunk:
            yield line


def _read(descriptor: int, hand_over: Callable[[list[Line] | OSError | None], None]) -> None:
    try:
        try:
            for lines in _split(iter(lambda: os.read(descriptor, _CHUNK_BYTES), b"")):
                if lines:
                    hand_over(lines)
            hand_over(None)
        except OSError as error:
            hand_over(error)
    except (RuntimeError, CancelledError):
        return  # the loop has gone: nobody wants the rest


def _split(chunks: Iterator[bytes]) -> Iterator[list[Line]]:
    """The lines that each chunk completes."""
    started: list[bytes] = []
    started_bytes = 0
    number = 0
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        lines = []
        for end in ends:
            number += 1
            size = started_bytes + len(end) + 1
            line = _line(number, started, end, size)
            if line is not None:
                lines.append(line)
            started, started_bytes = [], 0
        started_bytes += len(rest)
        if started_bytes <= LONGEST_LINE_BYTES:
            started.append(rest)
        yield lines
    last = _line(number + 1, started, b"", started_bytes)
    if last is not None:
        yield [last]


def _line(number: int, started: list[bytes], end: bytes, size: int) -> Line | None:
    if size > LONGEST_LINE_BYTES:
        return Line(number, None, size)
    body = b"".join((*started, end)).strip()
    if number == 1:
        body = _without_mark(body)
    return Line(number, body, size) if body else None


def _without_mark(body: bytes) -> bytes:
    return body.removeprefix(_BYTE_ORDER_MARK)


def _place(before: bytes) -> str:
    text = before.decode("utf-8", "replace")
    line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    return f"line {line}, column {column}" if line > 1 else f"column {column}"
