"""`evworker topology`: the exchanges and queues that plugins need, and what the broker has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from evworker.cli import interrupts, options
from evworker.cli.failures import WrongError, say
from evworker.cli.rendering import counted, show_json, show_table
from evworker.cli.settings import VerbGroup

if TYPE_CHECKING:
    from evworker.broker import Connection, Difference, Topology

plugins_option = options.app("Modules whose plugins say what has to be there.")


@click.group(cls=VerbGroup, subcommand_metavar="VERB [ARGS]...")
def topology() -> None:
    """Show, apply or compare the exchanges and queues that plugins need.

    What is right depends on the broker's version, so all verbs connect. Nothing is ever deleted.
    """


@topology.command()
@plugins_option
@options.broker_url
@options.exchange
@options.as_json(
    "An array of 'kind' (exchange, queue, binding), 'name', and of exchanges 'type', 'arguments', "
    "of queues 'arguments', of bindings 'exchange', 'pattern'."
)
def show(app: tuple[str, ...], broker_url: str, exchange: str, as_json: bool) -> None:
    """What these plugins need on this broker; nothing is changed."""
    plan = interrupts.run(_plan(broker_url, app, exchange))
    if as_json:
        show_json(_objects(plan))
    else:
        show_table(
            ("kind", "name", "definition"),
            [(thing["kind"], thing["name"], _definition(thing)) for thing in _objects(plan)],
        )


@topology.command()
@plugins_option
@options.broker_url
@options.exchange
def apply(app: tuple[str, ...], broker_url: str, exchange: str) -> None:
    """Declare what is not there yet.

    What exists with another definition is told, with the way to migrate, and stays as it is.
    """
    plan = interrupts.run(_apply(broker_url, app, exchange))
    objects = (
        counted(len(plan.exchanges), "exchange"),
        counted(len(plan.queues), "queue"),
        counted(len(plan.bindings), "binding"),
    )
    click.echo(f"in place: {', '.join(objects)}")


@topology.command()
@plugins_option
@options.broker_url
@options.exchange
@options.as_json(
    "An array of 'kind', 'name', 'state' (same, missing, different, forbidden), 'argument', "
    "'expected', 'found', 'advice'."
)
def diff(app: tuple[str, ...], broker_url: str, exchange: str, as_json: bool) -> None:
    """Compare what these plugins need with what the broker has.

    Exits with 1 when something is missing or different. Bindings can't be listed over AMQP and are
    not compared; a worker makes its own when it starts.
    """
    differences = interrupts.run(_diff(broker_url, app, exchange))
    if as_json:
        show_json([_fields(difference) for difference in differences])
    else:
        show_table(
            ("state", "kind", "name", "argument", "expected", "found"),
            [
                (one.state, one.kind, one.name, one.argument, one.expected, one.found)
                for one in differences
            ],
        )
        for advice in dict.fromkeys(one.advice for one in differences if one.advice):
            say(advice)
    missing = sum(one.state == "missing" for one in differences)
    different = sum(one.state == "different" for one in differences)
    if different:
        raise WrongError(f"{different} different, {missing} missing")
    if missing:
        raise WrongError(f"{missing} missing; `evworker topology apply` makes them")


@asynccontextmanager
async def _planned(
    broker_url: str, app: tuple[str, ...], exchange: str
) -> AsyncIterator[tuple[Connection, Topology]]:
    from evworker.broker import Connection
    from evworker.cli.loading import load
    from evworker.cli.logs import configure_logs
    from evworker.workers import check_plugins, plan_topology

    configure_logs("warning", "console")
    plugins = load(app, plugins_expected=True).plugins
    check_plugins(plugins)
    async with Connection(broker_url, name="evworker topology") as connection:
        yield connection, plan_topology(plugins, exchange=exchange, version=connection.version)


async def _plan(broker_url: str, app: tuple[str, ...], exchange: str) -> Topology:
    async with _planned(broker_url, app, exchange) as (_, plan):
        return plan


async def _apply(broker_url: str, app: tuple[str, ...], exchange: str) -> Topology:
    from evworker.broker import apply_topology

    async with _planned(broker_url, app, exchange) as (connection, plan):
        await apply_topology(connection, plan)
    return plan


async def _diff(broker_url: str, app: tuple[str, ...], exchange: str) -> list[Difference]:
    from evworker.broker import diff_topology

    async with _planned(broker_url, app, exchange) as (connection, plan):
        return await diff_topology(connection, plan)


def _objects(plan: Topology) -> list[dict[str, Any]]:
    """The fields that `topology show --json` promises."""
    return [
        *(
            {
                "kind": "exchange",
                "name": one.name,
                "type": one.kind,
                "arguments": dict(one.arguments),
            }
            for one in plan.exchanges
        ),
        *(
            {"kind": "queue", "name": one.name, "arguments": dict(one.arguments)}
            for one in plan.queues
        ),
        *(
            {"kind": "binding", "name": one.queue, "exchange": one.exchange, "pattern": one.pattern}
            for one in plan.bindings
        ),
    ]


def _definition(thing: Mapping[str, Any]) -> str:
    if thing["kind"] == "binding":
        return f"{thing['pattern']} from {thing['exchange']}"
    arguments = dict(thing["arguments"])
    kind = thing.get("type") or arguments.pop("x-queue-type", "classic")
    return " ".join((kind, *(f"{name}={_value(value)}" for name, value in arguments.items())))


def _value(value: object) -> str:
    return "''" if value == "" else str(value)


def _fields(difference: Difference) -> dict[str, Any]:
    """The fields that `topology diff --json` promises."""
    return {
        "kind": difference.kind,
        "name": difference.name,
        "state": difference.state,
        "argument": difference.argument,
        "expected": difference.expected,
        "found": difference.found,
        "advice": difference.advice,
    }
