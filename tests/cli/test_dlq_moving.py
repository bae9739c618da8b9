"""`evworker dlq export` and `import`, as an operator uses them: byte for byte, and wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evworker.broker import count_messages
from tests.broker.deadletters.letters import Sent, all_in, failed, ids_in, order, put
from tests.cli.command import Command
from tests.cli.conftest import Exchange
from tests.cli.terminal import on_terminal

EXPORTED = ["dead_letter_queue", "filter", "file", "matched", "exported", "removed", "dry_run"]
IMPORTED = ["dead_letter_queue", "imported", "refused", "seconds", "dry_run"]
UNDECODABLE = bytes(range(256))


@pytest.fixture
async def letters(exchange: Exchange, charge: str) -> str:
    """Three events, and bytes that are none."""
    broken = Sent(id="b", body=UNDECODABLE, failure=failed(None, reason="undecodable"))
    await put(exchange.connection, f"{charge}.dlq", [*map(order, range(3)), broken])
    return f"{charge}.dlq"


@pytest.fixture
def file(evworker: Command) -> Path:
    return evworker.folder / "letters"


def lines_in(file: Path) -> list[bytes] | None:
    return file.read_bytes().splitlines(keepends=True) if file.exists() else None


async def test_what_was_exported_and_removed_comes_back_byte_for_byte(
    evworker: Command, exchange: Exchange, charge: str, letters: str, file: Path
) -> None:
    before = await all_in(exchange.connection, letters)
    export = ("dlq", "export", charge, "-o", file.name, "--remove")
    planned = await evworker(*export, "--dry-run", "--json")
    assert (planned.code, list(planned.json), lines_in(file)) == (0, EXPORTED, None)
    assert (planned.json["matched"], planned.json["exported"]) == (4, 0)

    exported = await evworker(*export, "--yes", "--json")
    assert exported.code == 0
    assert exported.json == {
        "dead_letter_queue": letters,
        "filter": "all",
        "file": "letters",
        "matched": 4,
        "exported": 4,
        "removed": 4,
        "dry_run": False,
    }
    told = exported.audit
    assert (told["action"], told["queue"], told["count"]) == ("export", letters, 4)
    assert (told["outcome"], "@" in told["who"]) == ("done", True)
    assert await count_messages(exchange.connection, letters) == 0

    lines = b"".join(lines_in(file) or [])
    checked = await evworker("dlq", "import", charge, file.name, "--dry-run", "--json")
    assert (checked.code, list(checked.json), checked.err) == (0, IMPORTED, "")
    assert (checked.json["imported"], checked.json["dry_run"]) == (4, True)
    assert await count_messages(exchange.connection, letters) == 0
    imported = await evworker("dlq", "import", charge, "-", "--json", stdin=lines)
    assert (imported.code, list(imported.json)) == (0, IMPORTED)
    assert (imported.json["imported"], imported.json["refused"]) == (4, 0)
    told = imported.audit
    assert (told["action"], told["queue"], told["count"]) == ("import", letters, 4)
    assert (told["refused"], told["outcome"]) == (0, "done")
    after = await all_in(exchange.connection, letters)
    assert [letter.body for letter in after] == [letter.body for letter in before]
    assert [letter.failure for letter in after] == [letter.failure for letter in before]
    assert [letter.id for letter in after] == ["id-0", "id-1", "id-2", "b"]


async def test_letters_go_to_stdout_and_stay_where_they_are(
    evworker: Command, exchange: Exchange, charge: str, letters: str
) -> None:
    exported = await evworker("dlq", "export", charge, "--where", "total>=1", "--limit", "1")
    assert exported.code == 0
    (line,) = map(json.loads, exported.out.splitlines())
    assert (line["format"], line["id"], line["queue"]) == ("evworker.letter/1", "id-1", letters)
    assert exported.err == f"exported 1 letter of {letters}\n"
    assert await ids_in(exchange.connection, letters) == ["id-0", "id-1", "id-2", "b"]


async def test_what_is_wrong_is_told_and_no_letter_is_touched(
    evworker: Command, exchange: Exchange, charge: str, letters: str, file: Path
) -> None:
    evworker.write("here", "already")
    for arguments, code, why in [
        (("export", charge, "-o", "here"), 2, "'here' is there already; name a new file"),
        (("export", charge, "-o", "no/letters"), 2, "can't write 'no/letters'"),
        (("export", f"{charge}.no", "-o", "letters"), 1, f"no queue '{charge}.no.dlq'"),
        (("import", f"{charge}.no", "here"), 1, f"no queue '{charge}.no.dlq'"),
    ]:
        refused = await evworker("dlq", *arguments)
        assert (refused.code, refused.out) == (code, "")
        assert why in refused.error
    assert lines_in(file) is None
    assert (evworker.folder / "here").read_text() == "already"
    assert await ids_in(exchange.connection, letters) == ["id-0", "id-1", "id-2", "b"]


async def test_lines_that_are_no_letters_are_told_and_the_others_imported(
    evworker: Command, exchange: Exchange, charge: str
) -> None:
    good = '{"format": "evworker.letter/1", "queue": "q", "body": "1"}'
    evworker.write("mixed", f"{good}\nnonsense\n{good}\n")
    for dry_run, there in (("--dry-run",), 0), ((), 2):
        done = await evworker("dlq", "import", charge, "mixed", *dry_run)
        assert done.code == 1
        told = [line for line in done.err.splitlines() if '"evworker.audit"' not in line]
        assert told[0].startswith("line 2: not a letter: ")
        assert told[1:] == ["error: 1 line refused; each is told above"]
        assert done.out.endswith(f"imported 2 letters into {charge}.dlq\n".removeprefix("imported"))
        assert await count_messages(exchange.connection, f"{charge}.dlq") == there
    assert (done.audit["count"], done.audit["refused"]) == (2, 1)


async def test_on_a_terminal_the_name_has_to_be_typed_before_letters_are_removed(
    evworker: Command, exchange: Exchange, charge: str, letters: str, file: Path
) -> None:
    export = ("dlq", "export", charge, "-o", file.name, "--remove", "--limit", "3")
    asked = "Type the queue's name to go on"
    code, screen = await on_terminal(evworker, *export, answers={asked: "no"})
    assert (code, lines_in(file)) == (1, None)
    assert "3 letters will be exported, and removed" in screen
    assert await ids_in(exchange.connection, letters) == ["id-0", "id-1", "id-2", "b"]
    code, _ = await on_terminal(evworker, *export, answers={asked: letters})
    assert (code, len(lines_in(file) or [])) == (0, 3)
    assert await ids_in(exchange.connection, letters) == ["b"]
