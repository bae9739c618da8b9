"""Where every failure becomes one clear line on stderr and an exit code.

    0  done
    1  found something wrong: a difference, a missing queue, refused lines
    2  usage: an option, a setting, the data of an argument
    3  could not import what was named
    4  broker
    5  database

A mistake of the user's never shows a traceback; a mistake of ours always does.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

FOUND_SOMETHING = 1
USAGE = 2
NOT_IMPORTED = 3
BROKER = 4
DATABASE = 5
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


class VerbError(Exception):
    """Ends the verb with a line on stderr and an exit code."""

    code = FOUND_SOMETHING


class WrongError(VerbError):
    """The verb did its work and found something wrong."""


class UsageError(VerbError):
    """An argument, an option or a setting can't be what was meant."""

    code = USAGE


class NotImportedError(VerbError):
    """What was named could not be imported, or is no plugin."""

    code = NOT_IMPORTED


class BrokerFailedError(VerbError):
    """The broker failed in the middle of the work; the message says how far it came."""

    code = BROKER


class DatabaseFailedError(VerbError):
    """The database failed in the middle of the work; the message says how far it came."""

    code = DATABASE


def exit_code_of(command: Callable[[], Any]) -> int:
    """Run the command; report whatever it raises, and return the exit code for it."""
    try:
        result = command()
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last one who can tell the user anything
        return _reported(error)
    # `--help` and `ctx.exit(n)` come back as their exit code; a verb returns None.
    return result if isinstance(result, int) else 0


def say(text: str) -> None:
    """A line for people, on stderr, beside the results."""
    click.echo(text, err=True)


def _reported(error: Exception) -> int:
    match error:
        case BrokenPipeError():
            forget_stdout()
            code = 0
        case OSError(errno=number) if number in _NO_ROOM:
            forget_stdout()
            say(f"error: can't write the results: {error.strerror}")
            code = FOUND_SOMETHING
        case VerbError():
            say(f"error: {error}")
            code = error.code
        case click.ClickException():
            message = error.format_message()
            # A group without a verb answers with its help (click 8.2 and later).
            say(message if message.startswith("Usage:") else f"error: {_told(error)}")
            code = error.exit_code
        case _:
            code = _reported_below(error)
    return code


def _reported_below(error: Exception) -> int:
    """What the lower floors raise, and what nobody should."""
    from evworker.broker import (
        BrokerError,
        ConfigurationError,
        EventError,
        EvworkerError,
        HeadersError,
        MessageTooLargeError,
        QueueNotFoundError,
    )
    from evworker.broker.errors import DatabaseError

    if (driver := _of_a_driver(error)) is not None:
        say(f"error: the database refused: {driver}")
        return DATABASE
    if not isinstance(error, EvworkerError):
        traceback.print_exception(error)
        say("error: this is a fault in evworker itself; please report it with the lines above")
        return FOUND_SOMETHING
    say(f"error: {error}")
    match error:
        case ConfigurationError() | EventError() | HeadersError() | MessageTooLargeError():
            return USAGE
        case BrokerError() if not isinstance(error, QueueNotFoundError):
            return BROKER
        case DatabaseError():
            return DATABASE
    return FOUND_SOMETHING


def _of_a_driver(error: Exception) -> BaseException | None:
    """What a database has answered, if that is it: no room, no permission, a read-only replica."""
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy.exc import DBAPIError

    return error.orig if isinstance(error, DBAPIError) else None


def forget_stdout() -> None:
    """The reader has seen enough, as in `evworker tap | head -1`: that is no failure.

    Python would complain once more when it flushes stdout on its way out.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: click.ClickException) -> str:
    message = error.format_message()
    if not isinstance(error, click.UsageError):
        return message
    context = error.ctx
    if isinstance(error, click.BadParameter) and error.param and error.param.name and context:
        source = context.get_parameter_source(error.param.name)
        if source is ParameterSource.DEFAULT_MAP:
            message = f"{message} It comes from [tool.evworker] of pyproject.toml."
        elif source is ParameterSource.ENVIRONMENT:
            message = f"{message} It comes from the environment."
    if context is None:
        return message
    return f"{_sentence(message)} See `{context.command_path} --help`."


def _sentence(message: str) -> str:
    return message if message.endswith((".", "?", "!")) else f"{message}."
