"""Logs: structlog on stderr, one line a happening, for people or for machines.

The loggers of other libraries, and those of handlers that use `logging`, come out in the same form.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["console", "json"]
LEVELS = ("debug", "info", "warning", "error", "critical")

# At DEBUG these print message bodies, login frames, and statements with what is in them; and on
# their own a stack for each lost connection, which evworker tells in one line.
_INDISCREET = ("aio_pika", "aiormq", "aiosqlite", "aiomysql", "asyncpg", "sqlalchemy.pool")

Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]


def configure_logs(
    level: str = "warning", log_format: LogFormat | None = None, *processors: Processor
) -> None:
    """Send everything that is logged from now on to stderr, in one form.

    Without a format it is ``console`` on a terminal and ``json`` elsewhere. `processors` add to
    each line, those of other libraries included.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = sys.stderr
    log_format = log_format or default_format(stream)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        *processors,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso")
        if log_format == "json"
        else structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
    ]
    rendering = _rendering(log_format, stream)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *names: _NamedLogger(stream, *names),
        cache_logger_on_first_use=True,
    )
    _route_stdlib(number, stream, shared, rendering)


def announce(name: str, message: str, **fields: Any) -> None:
    """A warning that no level hides."""
    everything = structlog.make_filtering_bound_logger(logging.NOTSET)
    logger = structlog.wrap_logger(_NamedLogger(sys.stderr, name), wrapper_class=everything)
    logger.warning(message, **fields)


def default_format(stream: TextIO) -> LogFormat:
    return "console" if stream.isatty() else "json"


def _rendering(log_format: LogFormat, stream: TextIO) -> list[Any]:
    if log_format == "json":
        return [
            structlog.processors.format_exc_info,
            # An event is something else here.
            structlog.processors.EventRenamer("message"),
            _headings_first,
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    return [
        structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=0,
            sort_keys=False,
            # Rich ones show local variables: other people's data, and passwords.
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]


def _headings_first(
    _logger: object, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    first = {name: event_dict.get(name) for name in ("timestamp", "level", "logger", "message")}
    return {**first, **event_dict}


def _json(value: Any, **_: Any) -> str:
    import msgspec

    return msgspec.json.encode(value, enc_hook=repr).decode()


class _NamedLogger(structlog.WriteLogger):
    """Writes lines, and knows its name: structlog reads it there."""

    def __init__(self, stream: TextIO, name: str = "evworker") -> None:
        super().__init__(stream)
        self.name = name


def _route_stdlib(number: int, stream: TextIO, shared: list[Any], rendering: list[Any]) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=number, force=True)
    for name in _INDISCREET:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if number <= logging.DEBUG else logging.CRITICAL)
    logging.captureWarnings(capture=True)
