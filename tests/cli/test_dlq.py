"""`evworker dlq`, on letters that a worker wrote and on some that it did not."""

from __future__ import annotations

import json

import pytest

from evworker.broker import count_messages
from tests.cli.command import Command
from tests.cli.conftest import Exchange

FIELDS = {
    "group",
    "frame",
    "replays",
    "history",
    "edit_of",
    *("position", "id", "topic", "reason", "error_type", "error_message", "traceback", "attempts"),
    *("first_failed_at", "failed_at", "consumer", "host", "origin_exchange", "origin_routing_key"),
    *("content_type", "headers", "envelope", "body"),
}


@pytest.fixture
async def letters(evworker: Command, exchange: Exchange, shop: str) -> str:
    """The dead-letter queue, with a letter that was given up and one that failed twice."""
    await evworker("topology", "apply")
    await evworker("publish", "orders.placed", '{"order_id": "a", "total": -1}', "--id", "a")
    await evworker("publish", "orders.placed", '{"order_id": "b"}', "--id", "b")
    worked = await evworker("run", "-Q", f"{shop}.charge", "--burst")
    assert worked.code == 0, worked.err
    return f"{shop}.charge.dlq"


async def put(exchange: Exchange, queue: str, body: bytes) -> None:
    channel = await exchange.connection.channel(confirms=True)
    await channel.basic_publish(body, exchange="", routing_key=queue)
    await channel.close()


async def test_list_counts_the_letters_of_each_queue(
    evworker: Command, letters: str, shop: str
) -> None:
    listed = await evworker("dlq", "list")
    assert (listed.code, listed.err) == (0, "")
    assert [line.split()[:2] for line in listed.out.splitlines()[1:]] == [
        [letters, "2"],
        [f"{shop}.stuck.dlq", "0"],
    ]
    (told,) = (await evworker("dlq", "list", "-Q", f"{shop}.charge", "--json")).json
    assert (told["queue"], told["dead_letter_queue"]) == (f"{shop}.charge", letters)
    assert (told["exists"], told["messages"]) == (True, 2)


async def test_list_says_which_queue_is_missing(evworker: Command, shop: str) -> None:
    listed = await evworker("dlq", "list", "--json")
    assert listed.code == 1
    assert f"there is no {shop}.charge.dlq, {shop}.stuck.dlq on the broker" in listed.error
    assert [queue["exists"] for queue in listed.json] == [False, False]


@pytest.mark.parametrize("suffix", ["", ".dlq"])
async def test_show_tells_what_happened(
    suffix: str, evworker: Command, letters: str, shop: str
) -> None:
    shown = await evworker("dlq", "show", f"{shop}.charge{suffix}", "--json")
    one, other = sorted(shown.json, key=lambda letter: str(letter["id"]))
    assert shown.code == 0
    assert set(one) == set(other) == FIELDS
    assert (one["reason"], one["error_type"], one["attempts"]) == (
        "given-up",
        "shop.CardDeclined",
        1,
    )
    assert (other["reason"], other["error_type"], other["attempts"]) == (
        "failed",
        "RuntimeError",
        2,
    )
    assert other["error_message"] == "the bank is away"
    assert "shop.py" in other["traceback"]
    assert other["consumer"] == "billing.charge"
    assert (other["origin_exchange"], other["origin_routing_key"]) == (shop, "orders.placed")
    assert other["first_failed_at"] < other["failed_at"]
    assert other["envelope"]["data"] == {"order_id": "b"}
    assert other["body"] is None


async def test_show_is_readable_and_no_letter_moves_the_terminal(
    evworker: Command, letters: str
) -> None:
    shown = await evworker("dlq", "show", letters, "--id", "a")
    assert shown.code == 0
    assert "reason    given-up: its error is one that the policy does not retry" in shown.out
    assert r"shop.CardDeclined: no \x1b[31mfunds" in shown.out
    assert '"order_id": "a"' in shown.out
    assert "\x1b" not in shown.out
    assert "letter 2" not in shown.out


async def test_show_shows_bytes_that_are_no_event(
    evworker: Command, exchange: Exchange, letters: str
) -> None:
    await put(exchange, letters, b"\xff\x00caf\xc3\xa9")
    shown = (await evworker("dlq", "show", letters, "--json")).json
    assert [letter["body"] for letter in shown if letter["envelope"] is None] == [r"\xff\x00café"]
    assert [letter["reason"] for letter in shown if letter["envelope"] is None] == ["unknown"]
    assert (
        r"7 bytes that are no event: \xff\x00café" in (await evworker("dlq", "show", letters)).out
    )


async def test_show_stops_at_the_limit_and_says_so(evworker: Command, letters: str) -> None:
    shown = await evworker("dlq", "show", letters, "--limit", "1")
    assert "1 of 2 letters shown" in shown.err
    assert (
        len(json.loads((await evworker("dlq", "show", letters, "--limit", "1", "--json")).out)) == 1
    )


async def test_showing_changes_nothing(evworker: Command, exchange: Exchange, letters: str) -> None:
    first = await evworker("dlq", "show", letters, "--json")
    for _ in range(5):
        assert (await evworker("dlq", "show", letters, "--json")).code == 0
    again = await evworker("dlq", "show", letters, "--json")
    ids = [letter["id"] for letter in first.json]
    assert [letter["id"] for letter in again.json] == ids
    assert await count_messages(exchange.connection, letters) == 2


async def test_an_empty_queue_and_a_missing_one(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    missing = await evworker("dlq", "show", f"{shop}.charge")
    assert missing.code == 1
    assert f"there is no queue '{shop}.charge.dlq'" in missing.error
    await evworker("topology", "apply")
    empty = await evworker("dlq", "show", f"{shop}.charge")
    assert (empty.code, empty.out) == (0, f"{shop}.charge.dlq is empty\n")


async def test_an_id_that_is_not_there(evworker: Command, letters: str) -> None:
    shown = await evworker("dlq", "show", letters, "--id", "z")
    assert shown.code == 1
    assert shown.error == f"no letter in {letters} has the id 'z'"
