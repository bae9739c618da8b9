"""Options that several verbs share, each declared once, and their types."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_BROKER_URL = "amqp://localhost"
DEFAULT_INBOX_WINDOW = "7d"


def comma_list(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """The type of options that take names between commas, and may be repeated (see `flatten`)."""
    if isinstance(value, tuple):
        return value
    return tuple(name for part in value.split(",") if (name := part.strip()))


def seconds(value: str | float) -> float:
    """The type of durations: a number of seconds, 0 included, or written like ``500ms``, ``5m``."""
    try:
        number = float(value)
    except ValueError:
        from evworker.broker import DurationError, parse_duration

        try:
            return parse_duration(value)
        except DurationError as error:
            raise click.BadParameter(str(error)) from error
    if not 0 <= number < float("inf"):
        raise click.BadParameter(f"{value!r} is not a duration; write for example 30s or 5m.")
    return number


class Rate(click.FloatRange):
    """The type of numbers a second: above 0; not ``nan``, which no comparison refuses."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        rate: float = super().convert(value, param, ctx)
        if not isfinite(rate):
            self.fail(f"{value!r} is no number of so many a second.", param, ctx)
        return rate


def flatten(
    _ctx: click.Context, _param: click.Parameter, value: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
    """The callback of repeatable options of type comma_list: all their names in one."""
    return tuple(name for names in value for name in names)


def _broker_url(default: str | None, instead: str = "") -> Callable[[F], F]:
    return click.option(
        "-b",
        "--broker-url",
        metavar="URL",
        envvar="EVWORKER_BROKER_URL",
        default=default,
        show_default=True,
        help="The broker: amqp://user:password@host[:port][,host…]/vhost, or amqps://."
        + (f"  [default: {instead}]" if instead else ""),
    )


def broker_url(command: F) -> F:
    return _broker_url(DEFAULT_BROKER_URL)(command)


def broker_url_or(instead: str) -> Callable[[F], F]:
    """`--broker-url` of a verb that knows what to do without one, in these words."""
    return _broker_url(None, instead)


def database_url(command: F) -> F:
    return click.option(
        "-d",
        "--database-url",
        metavar="URL",
        envvar="EVWORKER_DATABASE_URL",
        help="The database of outbox and inbox: postgresql://user:password@host/name, mysql://…, "
        "or sqlite:///file.db.",
    )(command)


def inbox_window(help_text: str) -> Callable[[F], F]:
    """`--inbox-window`, handed over in seconds; what it is needed for differs by verb."""
    return click.option(
        "--inbox-window",
        "inbox_window_s",
        type=seconds,
        metavar="DURATION",
        envvar="EVWORKER_INBOX_WINDOW",
        default=DEFAULT_INBOX_WINDOW,
        show_default=True,
        help=help_text,
    )


def logging(command: F) -> F:
    """`--log-format` and `--log-level`, for the verbs that run until they are stopped."""
    level = click.option(
        "-l",
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
        default="info",
        show_default=True,
        help="debug has a line for each success, warning begins with retries, error with what "
        "failed for good.",
    )
    log_format = click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        help="Lines for people or for machines.  [default: console on a terminal, else json]",
    )
    return log_format(level(command))


def exchange(command: F) -> F:
    return click.option(
        "-e",
        "--exchange",
        metavar="NAME",
        envvar="EVWORKER_EXCHANGE",
        default="events",
        show_default=True,
        help="The topic exchange that events are published to.",
    )(command)


def app(help_text: str) -> Callable[[F], F]:
    """`-A/--app`; what the named modules are needed for differs from verb to verb."""
    return click.option(
        "-A",
        "--app",
        metavar="MODULE[:ATTR]",
        type=comma_list,
        multiple=True,
        callback=flatten,
        envvar="EVWORKER_APP",
        help=f"{help_text} Repeat it, or use commas.",
    )


def as_json(help_text: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)
