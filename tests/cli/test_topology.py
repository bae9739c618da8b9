"""`evworker topology`, against brokers that have nothing, everything, and something else."""

from __future__ import annotations

from tests.cli.command import Command
from tests.cli.conftest import Exchange


async def test_show_lists_what_the_plugins_need(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    shown = (await evworker("topology", "show", "--json")).json
    charge = next(thing for thing in shown if thing["name"] == f"{shop}.charge")
    assert charge["kind"] == "queue"
    assert charge["arguments"]["x-queue-type"] == "quorum"
    assert {"kind": "exchange", "name": shop, "type": "topic"}.items() <= shown[1].items()
    assert shown[-1] == {
        "kind": "binding",
        "name": f"{shop}.stuck",
        "exchange": shop,
        "pattern": "stuck",
    }


async def test_show_is_aligned_in_a_pipe_and_cuts_nothing(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    heading, *lines = (await evworker("topology", "show")).out.splitlines()
    column = heading.index("DEFINITION")
    assert all(line[column - 1] == " " != line[column] for line in lines)
    assert any(line.endswith("x-overflow=reject-publish") for line in lines)


async def test_what_is_missing_is_found_and_applied(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    before = await evworker("topology", "diff", "--json")
    states = {thing["name"]: thing["state"] for thing in before.json}
    assert before.code == 1
    assert (states[shop], states[f"{shop}.charge"]) == ("same", "missing")
    assert "`evworker topology apply` makes them" in before.error

    applied = await evworker("topology", "apply")
    assert (applied.code, applied.err) == (0, "")
    assert applied.out == "in place: 2 exchanges, 12 queues, 3 bindings\n"

    after = await evworker("topology", "diff", "--json")
    assert (after.code, after.err) == (0, "")
    assert {thing["state"] for thing in after.json} == {"same"}


async def test_what_is_different_is_explained_and_left_alone(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    shown = (await evworker("topology", "show", "--json")).json
    planned = next(thing for thing in shown if thing["name"] == f"{shop}.charge.retry.20ms")
    channel = await exchange.connection.channel()
    await channel.queue_declare(
        planned["name"], durable=True, arguments={**planned["arguments"], "x-message-ttl": 30}
    )
    await channel.close()

    compared = await evworker("topology", "diff", "--json")
    different = next(thing for thing in compared.json if thing["state"] == "different")
    assert compared.code == 1
    assert different["name"] == f"{shop}.charge.retry.20ms"
    assert different["argument"] == "x-message-ttl"
    assert (different["expected"], different["found"]) == ("20", "30")
    assert different["advice"]

    told = await evworker("topology", "diff")
    assert different["advice"] in told.err

    applied = await evworker("topology", "apply")
    assert applied.code == 4
    assert f"{shop}.charge.retry.20ms" in applied.err
    assert "Traceback" not in applied.err
