"""`evworker dlq list`, `groups` and `show`, with their filters, as an operator uses them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evworker.broker import replay_dead_letters
from tests.broker.deadletters.letters import AT, Sent, all_in, failed, ids_in, order, put
from tests.cli.command import Command
from tests.cli.conftest import Exchange

VERBS = {
    "groups": (),
    "show": (),
    "replay": (),
    "export": (),
    "purge": ("--yes",),
}


@pytest.fixture
async def letters(exchange: Exchange, charge: str) -> str:
    """Five letters of three kinds, an hour apart, the last of today."""

    def one(number: int, error_type: str, at: datetime) -> Sent:
        died = failed(error_type, failed_at=at, first_failed_at=at, traceback="File x")
        return order(number, failure=died)

    kinds = ["shop.Odd", "shop.Odd", "shop.Even", "shop.Odd"]
    sent = [one(n, kind, AT + timedelta(hours=n)) for n, kind in enumerate(kinds)]
    sent.append(one(4, "builtins.KeyError", datetime.now(UTC)))
    await put(exchange.connection, f"{charge}.dlq", sent)
    return f"{charge}.dlq"


async def test_list_tells_how_many_how_old_and_why(
    evworker: Command, charge: str, letters: str
) -> None:
    listed = await evworker("dlq", "list", "-Q", charge, "--json")
    assert (listed.code, listed.err) == (0, "")
    (told,) = listed.json
    assert (told["dead_letter_queue"], told["messages"]) == (letters, 5)
    assert told["oldest"] == "2026-11-23T12:00:00Z"
    assert told["newest"] > told["oldest"]
    assert told["reasons"][0] == {"reason": "failed", "error_type": "shop.Odd", "count": 3}
    assert [reason["count"] for reason in told["reasons"]] == [3, 1, 1]
    _, row = (await evworker("dlq", "list", "-Q", charge)).out.splitlines()
    assert row.split()[:2] == [letters, "5"]
    assert "shop.Odd 3, shop.Even 1, builtins.KeyError 1" in row
    _, row = (await evworker("dlq", "list", "-Q", charge, "--counts")).out.splitlines()
    assert row.split() == [letters, "5"]


async def test_groups_tell_how_many_from_when_to_when_and_one_of_them(
    evworker: Command, charge: str, letters: str
) -> None:
    grouped = await evworker("dlq", "groups", charge, "--json")
    assert (grouped.code, grouped.err) == (0, "")
    odd, *others = grouped.json
    group = odd.pop("group")
    assert odd == {
        "count": 3,
        "reason": "failed",
        "error_type": "shop.Odd",
        "error_message": "no funds",
        "frame": "shop.billing:charge",
        "consumer": "billing.charge",
        "first_seen": "2026-11-23T12:00:00Z",
        "last_seen": "2026-11-23T15:00:00Z",
        "example_id": "id-3",
    }
    assert [one["count"] for one in others] == [1, 1]
    shown = await evworker("dlq", "show", charge, "--group", group, "--json")
    assert [letter["id"] for letter in shown.json] == ["id-0", "id-1", "id-3"]
    plain = await evworker("dlq", "groups", charge, "--group", group)
    assert plain.out.splitlines()[1].split()[:3] == [group, "3", "shop.Odd"]


@pytest.mark.parametrize(
    ("filters", "meant"),
    [
        (("--error", "Even", "--error", "builtins.KeyError"), [2, 4]),
        (("--topic", "orders.*", "--id", "id-1", "--where", "order_id=1"), [1]),
        (("--since", "2026-11-23T13:00Z", "--until", "2026-11-23T14:00Z"), [1, 2]),
        (("--where", "total>1", "--where", "total!=3", "--reason", "failed"), [2, 4]),
    ],
    ids=["error", "topic-and-id", "time", "several"],
)
async def test_show_shows_what_is_meant_and_changes_nothing(
    filters: tuple[str, ...],
    meant: list[int],
    evworker: Command,
    exchange: Exchange,
    letters: str,
) -> None:
    shown = await evworker("dlq", "show", letters, *filters, "--json")
    assert (shown.code, shown.err) == (0, "")
    assert [letter["id"] for letter in shown.json] == [f"id-{number}" for number in meant]
    assert await ids_in(exchange.connection, letters) == [f"id-{number}" for number in range(5)]


async def test_show_tells_the_history_of_earlier_replays_and_is_the_same_each_time(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    connection = exchange.connection
    await replay_dead_letters(connection, letters, limit=1)
    (copy,) = await all_in(connection, charge)
    headers: dict[str, Any] = dict(copy.headers)
    again = Sent(id="again", body=copy.body, failure=failed("shop.Again"), headers=headers)
    await put(connection, letters, [again])
    look = ("dlq", "show", letters, "--error", "Again")
    first, second = [await evworker(*look, "--json") for _ in range(2)]
    plain = await evworker(*look)
    assert first.out == second.out
    (told,) = first.json
    assert (told["replays"], told["error_type"], told["id"]) == (1, "shop.Again", "again")
    (death,) = told["history"]
    assert (death["error_type"], death["attempts"]) == ("shop.Odd", 3)
    assert death["replayed_at"]
    assert (told["envelope"]["id"], told["envelope"]["time"]) == ("again", "2026-11-23T12:00:00Z")
    assert told["envelope"]["data"] == {"order_id": "0", "total": 0}
    assert "  history   " in plain.out
    assert "failed shop.Odd: no funds" in plain.out
    assert '"total": 0\n' in plain.out


async def test_a_queue_that_is_not_there_is_told_with_what_to_type(
    evworker: Command, shop: str
) -> None:
    async def refused(verb: str, *options: str) -> None:
        result = await evworker("dlq", verb, f"{shop}.none", *options)
        assert (verb, result.code, result.out) == (verb, 1, "")
        assert result.error.startswith(f"there is no queue '{shop}.none.dlq' on amqp://")
        assert "`evworker dlq list -A MODULE` tells the names" in result.error

    edit = refused("edit", "id", "--set", "a=1")
    await asyncio.gather(edit, *(refused(verb, *options) for verb, options in VERBS.items()))


async def test_json_is_one_document_where_there_is_nothing(evworker: Command, charge: str) -> None:
    for verb in ("groups", "show"):
        nothing = await evworker("dlq", verb, charge, "--json")
        assert (nothing.code, json.loads(nothing.out)) == (0, [])
