"""`evworker dlq edit`, as an operator uses it: with --set, with an editor, and wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from evworker.broker import count_messages
from tests.broker.deadletters.letters import Sent, all_in, failed, ids_in, order, put
from tests.cli.command import Command
from tests.cli.conftest import Exchange
from tests.cli.terminal import on_terminal

FIELDS = ["id", "edit_of", "topic", "to", "data", "dry_run"]


@pytest.fixture
async def letters(exchange: Exchange, charge: str) -> str:
    """Three letters; of the second the total is no number."""
    wrong = order(1, body=b'{"order_id": "1", "total": "a lot"}', failure=failed(reason="invalid"))
    await put(exchange.connection, f"{charge}.dlq", [order(0), wrong, order(2)])
    return f"{charge}.dlq"


@pytest.fixture
def drafts(evworker: Command, tmp_path: Path) -> Path:
    """The folder where the command writes what is edited."""
    folder = tmp_path / "drafts"
    folder.mkdir()
    evworker.environment["TMPDIR"] = str(folder)
    return folder


def in_folder(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def untouched(exchange: Exchange, letters: str) -> bool:
    there = await count_messages(exchange.connection, letters.removesuffix(".dlq"))
    return there == 0 and await ids_in(exchange.connection, letters) == ["id-0", "id-1", "id-2"]


async def test_fields_are_set_and_the_event_goes_back_as_a_new_one(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    edit = ("dlq", "edit", charge, "id-1", "--set", "total=9", "--set", "order_id=007")
    planned = await evworker(*edit, "--dry-run", "--json")
    assert (planned.code, planned.err) == (0, "")
    assert (planned.json["dry_run"], planned.json["edit_of"]) == (True, "id-1")
    assert await untouched(exchange, letters)

    edited = await evworker(*edit, "--json")
    assert edited.code == 0, edited.err
    told = edited.json
    assert list(told) == FIELDS
    assert (told["edit_of"], told["topic"], told["to"]) == ("id-1", "orders.placed", charge)
    assert (told["data"], told["dry_run"]) == ({"order_id": "007", "total": 9}, False)
    line = edited.audit
    assert (line["action"], line["queue"], line["to"]) == ("edit", letters, charge)
    assert (line["id"], line["new_id"], line["count"]) == ("id-1", told["id"], 1)
    assert (line["outcome"], "@" in line["who"]) == ("done", True)
    assert await ids_in(exchange.connection, letters) == ["id-0", "id-2"]
    (copy,) = await all_in(exchange.connection, charge)
    assert copy.id == copy.properties.message_id == told["id"]
    assert copy.headers["evw-edit-of"] == "id-1"
    assert copy.envelope is not None
    assert copy.envelope.value() == told["data"]


async def test_what_is_wrong_is_told_and_nothing_is_done(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    await put(exchange.connection, letters, [Sent(id="b", body=b"\xff", failure=failed())])
    no_editor = {"EDITOR": "", "VISUAL": ""}
    for arguments, code, why in [
        (("nope", "--set", "a=1"), 1, f"no letter in {letters} has the id 'nope'"),
        (("id-1", "--set", "total"), 2, "can't read --set 'total'; write FIELD=VALUE"),
        (("id-1", "--set", "=1"), 2, "can't read --set '=1'; write FIELD=VALUE"),
        (("id-1", "--set", "order_id.a=1"), 2, "can't set 'a' in \"1\": it has no such field"),
        (("id-1", "--set", "order_id=x"), 2, "Expected `int`, got `str` - at `$.total`"),
        (("id-1", "--set", "total=9", "--to", f"{charge}.no"), 1, f"no queue '{charge}.no'"),
        (("id-1",), 2, "there is no terminal to edit on: set fields with --set"),
        (("b", "--set", "a=1"), 2, "its bytes are no text"),
    ]:
        refused = await evworker("dlq", "edit", charge, *arguments, env=no_editor)
        assert (refused.code, refused.out) == (code, "")
        assert why in refused.error
    channel = await exchange.connection.channel()
    assert (await channel.queue_declare(charge, passive=True)).message_count == 0
    assert await ids_in(exchange.connection, letters) == ["id-0", "id-1", "id-2", "b"]


async def test_an_editor_opens_the_event_as_readable_json(
    evworker: Command, exchange: Exchange, charge: str, letters: str, drafts: Path
) -> None:
    evworker.write("seen.sh", 'cp "$1" seen\nsed -i \'s/"a lot"/12/\' "$1"\n')
    edited = await evworker("dlq", "edit", charge, "id-1", env={"EDITOR": "sh seen.sh"})
    assert edited.code == 0, edited.err
    seen = (evworker.folder / "seen").read_text()
    assert seen == '{\n  "order_id": "1",\n  "total": "a lot"\n}\n'
    (copy,) = await all_in(exchange.connection, charge)
    assert edited.out == f"{copy.id}  orders.placed  edit of id-1, put into {charge}\n"
    assert copy.envelope is not None
    assert copy.envelope.value() == {"order_id": "1", "total": 12}
    assert in_folder(drafts) == []


async def test_an_editor_that_fails_or_changes_nothing_changes_nothing(
    evworker: Command, exchange: Exchange, charge: str, letters: str, drafts: Path
) -> None:
    same = await evworker("dlq", "edit", charge, "id-1", env={"EDITOR": "true"})
    assert (same.code, same.out) == (0, "nothing was changed, and nothing was done\n")
    for editor in ("false", "no-such-editor"):
        failing = await evworker("dlq", "edit", charge, "id-1", env={"EDITOR": editor})
        assert failing.code == 1
        assert failing.error.startswith(f"{editor}: Editing failed")
        assert "nothing was done: name an editor that works in EDITOR" in failing.error
    assert in_folder(drafts) == []
    assert await untouched(exchange, letters)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("s/a lot/12/", "Expected `int`, got `str` - at `$.total`; nothing was done"),
        ("s/}//", "the event is not JSON: "),
    ],
    ids=["invalid", "no-json"],
)
async def test_an_event_that_is_not_valid_afterwards_is_kept_as_a_draft(
    script: str,
    why: str,
    evworker: Command,
    exchange: Exchange,
    charge: str,
    letters: str,
    drafts: Path,
) -> None:
    editor = {"EDITOR": f"sed -i {script!r}"}
    refused = await evworker("dlq", "edit", charge, "id-1", env=editor)
    assert refused.code == 2
    kept, error = refused.err.splitlines()
    (draft,) = in_folder(drafts)
    assert kept == f"your text is kept in {draft}"
    assert why in error
    assert await untouched(exchange, letters)


async def test_on_a_terminal_one_may_try_again(
    evworker: Command, exchange: Exchange, charge: str, letters: str, drafts: Path
) -> None:
    # Each time it is run, the editor takes one letter from the words.
    editor = {"EDITOR": "sed -i 's/a lot/12/; t; s/\"12\"/12/'"}
    edit = ("dlq", "edit", charge, "id-1")
    code, screen = await on_terminal(evworker, *edit, answers={"Edit it again?": "n"}, env=editor)
    assert code == 1
    assert "Expected `int`, got `str` - at `$.total`" in screen
    (draft,) = in_folder(drafts)
    assert f"your text is kept in {draft}" in screen
    assert await untouched(exchange, letters)
    code, screen = await on_terminal(evworker, *edit, answers={"Edit it again?": "y"}, env=editor)
    assert (code, f"edit of id-1, put into {charge}" in screen) == (0, True)
    assert in_folder(drafts) == [draft]
    assert await ids_in(exchange.connection, letters) == ["id-0", "id-2"]


async def test_an_event_that_nobody_checks_is_said_to_be_unchecked(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    edit = ("dlq", "edit", charge, "id-1", "--set", "order_id=5", "--dry-run")
    nameless = await evworker(*edit, env={"EVWORKER_APP": ""})
    assert nameless.code == 0
    assert nameless.err == (
        "note: the data is not checked; name the module of its event type with -A\n"
    )
    evworker.write("other.py", "")
    strange = await evworker(*edit, "-A", "other")
    assert "no event type of other has the topic 'orders.placed'" in strange.err
    assert await untouched(exchange, letters)
