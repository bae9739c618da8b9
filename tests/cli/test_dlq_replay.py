"""`evworker dlq replay`, as an operator uses it."""

from __future__ import annotations

from typing import Any

from tests.broker.deadletters.letters import Sent, failed, ids_in, order, put
from tests.cli.command import Command
from tests.cli.conftest import Exchange
from tests.cli.terminal import on_terminal

FIELDS = [
    *("dead_letter_queue", "to", "filter", "waiting", "matched", "replayed", "hopeless"),
    *("failed_again", "stopped", "seconds", "dry_run"),
]


def odd_or_even(number: int) -> Sent:
    return order(number, failure=failed("shop.Odd" if number % 2 else "shop.Even"))


async def test_what_is_meant_goes_back_and_one_line_says_so(
    evworker: Command, exchange: Exchange, charge: str
) -> None:
    connection, letters = exchange.connection, f"{charge}.dlq"
    await put(connection, letters, map(odd_or_even, range(7)))
    planned = await evworker("dlq", "replay", charge, "--error", "Odd", "--dry-run", "--json")
    assert (planned.code, planned.err) == (0, "")
    assert list(planned.json) == FIELDS
    assert (planned.json["waiting"], planned.json["matched"]) == (7, 3)
    assert (planned.json["replayed"], planned.json["dry_run"]) == (0, True)
    assert await ids_in(connection, letters) == [f"id-{n}" for n in range(7)]
    assert await ids_in(connection, charge) == []

    some = await evworker("dlq", "replay", letters, "--error", "Odd", "--limit", "2", "--json")
    assert some.code == 0
    assert list(some.json) == FIELDS
    assert (some.json["dead_letter_queue"], some.json["to"]) == (letters, charge)
    assert (some.json["matched"], some.json["replayed"], some.json["dry_run"]) == (None, 2, False)
    told = some.audit
    assert (told["action"], told["queue"], told["to"]) == ("replay", letters, charge)
    assert (told["filter"], told["limit"]) == ("error=Odd", 2)
    assert (told["count"], told["outcome"]) == (2, "done")
    assert "@" in told["who"]
    assert await ids_in(connection, charge) == ["id-1", "id-3"]
    assert await ids_in(connection, letters) == [f"id-{n}" for n in (0, 2, 4, 5, 6)]

    rest = await evworker("dlq", "replay", charge, "--rate", "1000")
    assert rest.code == 0
    assert rest.out.startswith(f"replayed 5 letters of 5 to {charge} in ")
    assert await ids_in(connection, letters) == []
    again = await evworker("dlq", "replay", charge)
    assert (again.code, again.out) == (0, f"nothing to replay: {letters} has no letters\n")
    assert (again.audit["count"], again.audit["outcome"]) == (0, "done")


async def test_a_plan_says_why_they_died_and_what_is_hopeless(
    evworker: Command, exchange: Exchange, charge: str
) -> None:
    hopeless = Sent(id="bytes", body=b"\xff", failure=failed(None, reason="undecodable"))
    await put(exchange.connection, f"{charge}.dlq", [*map(odd_or_even, range(3)), hopeless])
    planned = await evworker("dlq", "replay", charge, "--dry-run")
    assert planned.out.splitlines() == [
        f"would replay 4 letters from {charge}.dlq to {charge}",
        "          2  failed  shop.Even",
        "          1  failed  shop.Odd",
        "          1  undecodable",
    ]
    assert "1 of them is undecodable or invalid" in planned.err
    assert "evworker dlq edit" in planned.err


async def test_it_stops_by_itself_when_they_keep_failing(
    evworker: Command, exchange: Exchange, charge: str
) -> None:
    connection, letters = exchange.connection, f"{charge}.dlq"
    await put(connection, letters, map(order, range(1_000)))
    channel, back = await connection.channel(), await connection.channel(confirms=True)

    async def fail(message: Any) -> None:
        properties = message.header.properties
        properties.headers |= failed("Again").to_headers()
        await back.basic_publish(b"{}", routing_key=letters, properties=properties)
        await channel.basic_ack(message.delivery.delivery_tag)

    await channel.basic_consume(charge, fail)
    stopped = await evworker("dlq", "replay", charge, "--rate", "100", "--json")
    assert stopped.code == 1
    told = stopped.json
    assert told["stopped"] is True
    assert 20 <= told["failed_again"] <= told["replayed"] < 1_000
    assert "error: stopped, since they keep failing" in stopped.err.splitlines()[-1]
    assert "`dlq groups`" in stopped.err.splitlines()[-1]
    assert stopped.audit["outcome"] == "stopped: they keep failing"
    assert stopped.audit["count"] == told["replayed"]


async def test_a_terminal_has_a_progress_bar(
    evworker: Command, exchange: Exchange, charge: str
) -> None:
    await put(exchange.connection, f"{charge}.dlq", map(order, range(40)))
    code, screen = await on_terminal(evworker, "dlq", "replay", charge, "--rate", "100")
    assert code == 0
    assert "replaying" in screen
    assert "40 letters" in screen
    assert f"replayed 40 letters of 40 to {charge}" in screen
