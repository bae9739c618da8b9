"""`evworker dlq purge`, as an operator uses it: never without being asked for twice."""

from __future__ import annotations

import pytest

from tests.broker.deadletters.letters import failed, ids_in, order, put
from tests.cli.command import Command
from tests.cli.conftest import Exchange
from tests.cli.terminal import on_terminal

ASKED = "Type the queue's name to go on"


@pytest.fixture
async def letters(exchange: Exchange, charge: str) -> str:
    """Six letters, odd and even."""
    sent = [order(n, failure=failed("shop.Odd" if n % 2 else "shop.Even")) for n in range(6)]
    await put(exchange.connection, f"{charge}.dlq", sent)
    return f"{charge}.dlq"


async def left(exchange: Exchange, letters: str) -> list[int]:
    return [int(str(id).removeprefix("id-")) for id in await ids_in(exchange.connection, letters)]


async def test_what_is_meant_is_removed_and_one_line_says_so(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    planned = await evworker("dlq", "purge", charge, "--error", "Odd", "--dry-run", "--json")
    assert (planned.code, planned.err) == (0, "")
    assert planned.json == {
        "dead_letter_queue": letters,
        "filter": "error=Odd",
        "matched": 3,
        "removed": 0,
        "dry_run": True,
    }
    assert await left(exchange, letters) == [0, 1, 2, 3, 4, 5]

    where = ("--where", "total>1", "--limit", "1", "--yes")
    some = await evworker("dlq", "purge", charge, "--error", "Odd", *where, "--json")
    assert some.code == 0
    assert (some.json["matched"], some.json["removed"]) == (1, 1)
    told = some.audit
    assert (told["action"], told["queue"], told["count"]) == ("purge", letters, 1)
    assert (told["filter"], told["outcome"]) == ("error=Odd where=total>1", "done")
    assert "@" in told["who"]
    assert await left(exchange, letters) == [0, 1, 2, 4, 5]

    none = await evworker("dlq", "purge", charge, "--error", "Other", "--yes")
    assert none.code == 0
    assert (none.out, none.err) == (f"{letters} has no letters with error=Other\n", "")
    everything = await evworker("dlq", "purge", charge, "--yes")
    assert (everything.code, everything.out) == (0, f"removed 5 letters from {letters}\n")
    listed = await evworker("dlq", "list", "-Q", charge, "--json")
    assert listed.json[0]["messages"] == 0


async def test_without_a_terminal_and_without_yes_nothing_is_removed(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    refused = await evworker("dlq", "purge", charge)
    assert (refused.code, refused.out) == (2, "")
    assert "letters will be removed for good: add --yes, or look first" in refused.error
    assert await left(exchange, letters) == [0, 1, 2, 3, 4, 5]


async def test_on_a_terminal_the_name_has_to_be_typed(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    purge = ("dlq", "purge", charge, "--error", "Odd")
    for wrong in ("y", ""):
        code, screen = await on_terminal(evworker, *purge, answers={ASKED: wrong})
        assert code == 1
        assert f"3 letters will be removed for good from {letters}" in screen
        assert "error: that is not its name; nothing was removed" in screen
    assert await left(exchange, letters) == [0, 1, 2, 3, 4, 5]
    code, screen = await on_terminal(evworker, *purge, answers={ASKED: charge})
    assert (code, f"removed 3 letters from {letters}" in screen) == (0, True)
    assert await left(exchange, letters) == [0, 2, 4]
