"""The command `evworker`: its verbs, each imported only when it is called.

`evworker --help` has to answer at once, so this file and what it imports import click and nothing
else of weight: no broker library, no rich, no structlog.
"""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from evworker.cli import failures
from evworker.cli.settings import VerbGroup, read_settings

# verb: (module, what it is called there, the line that `evworker --help` shows)
VERBS = {
    "run": ("evworker.cli.run", "run", "Run plugins: feed their consumers until told to stop."),
    "publish": ("evworker.cli.publish", "publish", "Publish an event, or a stream of them."),
    "dlq": ("evworker.cli.dlq", "dlq", "Dead letters: look, replay, edit, move, purge."),
    "outbox": (
        "evworker.cli.outbox",
        "outbox",
        "Events that wait in a database: tables, relay, dead rows.",
    ),
    "topology": (
        "evworker.cli.topology",
        "topology",
        "Show, apply or compare exchanges and queues.",
    ),
    "doctor": (
        "evworker.cli.doctor",
        "doctor",
        "Whether broker, database and plugins can keep the promises.",
    ),
    "tap": ("evworker.cli.tap", "tap", "Watch events go by; nobody receives less for it."),
    "demo": ("evworker.cli.demo", "demo", "An event's whole way, narrated; no server needed."),
}


class LazyGroup(VerbGroup):
    """Knows its verbs by name and line, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click asks so
        return list(VERBS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click asks so
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would make a failure of it.
            failures.forget_stdout()
            return 0

    def lines(self) -> list[tuple[str, str]]:
        return [(verb, line) for verb, (_, _, line) in VERBS.items()]


@click.group(
    cls=LazyGroup,
    name="evworker",
    subcommand_metavar="VERB [ARGS]...",
    context_settings={
        "auto_envvar_prefix": "EVWORKER",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
    epilog=(
        "Every option can also be set in the environment (EVWORKER_RUN_CONCURRENCY=20) and in "
        "[tool.evworker] of pyproject.toml. Exit codes: 0 done, 1 found something wrong, 2 usage, "
        "3 could not import, 4 broker, 5 database."
    ),
)
@click.version_option(package_name="evworker", message="evworker %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Typed events on RabbitMQ: retried, dead-lettered with the reason, never lost.

    \b
    evworker demo                     see it work; it needs no server
    evworker run shop.billing         run the plugins of a module
    evworker VERB --help              what a verb does, and its options
    """  # noqa: D301 - click reads \b
    ctx.obj = read_settings(tuple(VERBS))


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a character must not end a verb that is at work.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(failures.exit_code_of(lambda: run_command(arguments)))


def run_command(arguments: list[str] | None) -> Any:
    return cli.main(arguments, prog_name="evworker", standalone_mode=False)
