"""`evworker outbox` on a database of each kind: its tables, what waits in it, its dead rows."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import Sequence

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.engine import open_engine
from evworker.broker.database.schema import check_tables, make_tables
from evworker.broker.database.tables import outbox, seconds_from_now, utc_now
from tests.cli.command import TIMEOUT_S, Command, Result

STATUS_FIELDS = {
    *("ready", "oldest_age_s", "claimed", "scheduled", "backing_off", "dead", "sent_kept"),
    *("blocked_keys", "per_second", "relays", "leases"),
}
DEAD_FIELDS = [
    *("seq", "event_id", "topic", "key", "created_at", "attempts", "failed_since", "last_error"),
    "envelope",
]


class Rows:
    """Rows of the outbox as a relay leaves them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def add(self, state: str, *keys: str | None, attempts: int = 0) -> None:
        late = state == "waiting"
        values = {
            "event_id": "e",
            "topic": "orders.placed",
            "body": b'{"id": "e"}',
            "state": state,
            "created_at": seconds_from_now(-60.0),
            "due_at": seconds_from_now(60.0) if late else None,
            "attempts": attempts,
            "failed_since": utc_now() if attempts else None,
            "last_error": "the queue is full\nas it says" if attempts else None,
        }
        async with self.engine.begin() as connection:
            for key in keys:
                await connection.execute(insert(outbox).values(**values, key=key))

    async def by_state(self, state: str) -> Sequence[int]:
        listed = select(outbox.c.seq).where(outbox.c.state == state).order_by(outbox.c.seq)
        async with self.engine.connect() as connection:
            return (await connection.scalars(listed)).all()


@pytest.fixture
def rows(engine: AsyncEngine, database_url: str, evworker: Command) -> Rows:
    """A database with evworker's tables, which the command needs no option to find."""
    evworker.environment["EVWORKER_DATABASE_URL"] = database_url
    return Rows(engine)


# Tables


async def test_init_makes_the_tables_and_changes_nothing_that_is_there(
    evworker: Command, database_url: str
) -> None:
    made = await evworker("outbox", "init", "-d", database_url)
    assert (made.code, made.err) == (0, "")
    assert made.out.startswith("made evworker_inbox, evworker_locks, evworker_outbox, evworker_")
    engine = open_engine(database_url)
    await check_tables(engine)
    await engine.dispose()
    again = await evworker("outbox", "init", "-d", database_url)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("all tables are there")


async def test_init_prints_the_statements_and_connects_to_nothing(evworker: Command) -> None:
    printed = await evworker("outbox", "init", "--sql", "-d", "postgresql://shop@127.0.0.1:1/shop")
    assert (printed.code, printed.err) == (0, "")
    assert "CREATE TABLE evworker_outbox" in printed.out
    assert "BIGSERIAL" in printed.out
    other = await evworker("outbox", "init", "--sql", "--dialect", "mysql")
    assert "AUTO_INCREMENT" in other.out


async def test_tables_of_an_older_version_are_refused_with_the_migration(
    evworker: Command, rows: Rows
) -> None:
    async with rows.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE evworker_outbox DROP COLUMN last_error")
    refused = await evworker("outbox", "init")
    assert refused.code == 5
    assert refused.err.startswith("error: evworker's tables were made by an older version")
    assert "ALTER TABLE evworker_outbox ADD COLUMN last_error" in refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["outbox", "status"],
        ["outbox", "relay"],
        ["publish", "orders.placed", "--via-outbox"],
    ],
)
async def test_without_tables_each_verb_names_init(arguments: list[str], evworker: Command) -> None:
    evworker.environment["EVWORKER_DATABASE_URL"] = "sqlite:///empty.db"
    # No broker is needed to find that out.
    evworker.environment["EVWORKER_BROKER_URL"] = "amqp://127.0.0.1:1"
    refused = await evworker(*arguments)
    assert refused.code == 5
    last = refused.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "evworker outbox init" in last


# Which database


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("oracle://shop:geheim@db/shop", 2, "'oracle' is no database that evworker knows"),
        ("shop.db", 2, "the database URL can't be read; write it as 'postgresql://"),
        ("postgresql+nodriver://shop:geheim@db/shop", 2, "the driver 'nodriver' for postgresql"),
        ("postgresql://shop:geheim@127.0.0.1:1/shop", 5, "postgresql://shop:***@127.0.0.1:1/shop"),
        ("mysql://shop:geheim@127.0.0.1:1/shop", 5, "mysql://shop:***@127.0.0.1:1/shop"),
        ("sqlite:////nowhere/shop.db", 5, "unable to open database file"),
    ],
)
async def test_what_is_wrong_with_a_url_is_one_line(
    url: str, code: int, said: str, evworker: Command
) -> None:
    refused = await evworker("outbox", "status", "-d", url)
    assert said in refused.error
    assert "geheim" not in refused.err
    assert (refused.code, refused.out) == (code, "")


async def test_a_database_that_is_not_there_is_told_without_the_password(
    evworker: Command, postgres_url: str
) -> None:
    refused = await evworker("outbox", "status", "-d", f"{postgres_url}_not")
    assert refused.code == 5
    assert "does not exist" in refused.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["outbox", "status"], "no database: name it with -d/--database-url, in EVWORKER_DATABASE"),
        (["outbox", "init", "--sql"], "no database: name it with -d/--database-url"),
        (["outbox", "init", "--dialect", "mysql"], "--dialect goes with --sql"),
        (["outbox", "retry"], "name rows by their SEQ, or take --all"),
        (["outbox", "discard", "7", "--all"], "name rows by their SEQ, or take --all"),
        (["publish", "orders.placed", "--via-outbox"], "no database: name it with"),
        (["run", "--relay"], "no database: name it with"),
    ],
)
async def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], said: str, evworker: Command
) -> None:
    result = await evworker(*arguments)
    assert said in result.error
    assert (result.code, result.out) == (2, "")


async def test_the_url_may_stand_in_the_settings(evworker: Command) -> None:
    evworker.write(
        "pyproject.toml",
        """
        [tool.evworker]
        database-url = "sqlite:///shop.db"
        """,
    )
    made = await evworker("outbox", "init")
    assert (made.code, made.err) == (0, "")
    assert (evworker.folder / "shop.db").exists()


async def test_without_sqlalchemy_it_says_what_to_install(evworker: Command) -> None:
    # What stands in the working directory is found first, and this one can't be imported.
    evworker.write("sqlalchemy.py", "raise ModuleNotFoundError('gone', name='sqlalchemy')")
    evworker.environment["PYTHONPATH"] = str(evworker.folder)
    refused = await evworker("outbox", "status", "-d", "mysql://shop@127.0.0.1/shop", stdin=b"\n")
    assert refused.code == 2
    assert "pip install 'evworker[mysql]'" in refused.error


# What waits


async def test_status_counts_what_waits_and_names_who_is_missing(
    evworker: Command, rows: Rows
) -> None:
    await rows.add("ready", None, "a", "b")
    await rows.add("waiting", None)
    await rows.add("waiting", "a", attempts=3)
    await rows.add("dead", "b", "b", attempts=10)
    told = (await evworker("outbox", "status", "--json")).json
    assert set(told) == STATUS_FIELDS
    assert 60 <= told.pop("oldest_age_s") < 600
    assert told == {
        **dict.fromkeys(("claimed", "sent_kept", "per_second"), 0),
        **dict.fromkeys(("scheduled", "backing_off"), 1),
        **dict.fromkeys(("dead", "blocked_keys"), 2),
        "relays": [],
        "leases": [],
        "ready": 3,
    }
    shown = await evworker("outbox", "status")
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["ready", "3", "to", "be", "published"] in lines
    assert "2 keys wait behind a row that backs off or is dead" in shown.out
    dead, nobody = shown.err.splitlines()
    assert dead == "warning: 2 events won't be published unless you retry or discard them"
    assert "no relay is at work: start `evworker outbox relay`" in nobody
    assert shown.code == 0


# Dead rows


async def test_dead_rows_are_shown_retried_and_discarded(evworker: Command, rows: Rows) -> None:
    await rows.add("dead", "a", None, "b", attempts=11)
    first, second, third = await rows.by_state("dead")

    shown = await evworker("outbox", "dead", "--json")
    assert (shown.code, shown.err) == (0, "")
    assert [row["seq"] for row in shown.json] == [first, second, third]
    one = shown.json[0]
    assert list(one) == DEAD_FIELDS
    assert (one["key"], one["attempts"], one["envelope"]) == ("a", 11, {"id": "e"})
    assert one["last_error"] == "the queue is full\nas it says"

    retried = await evworker("outbox", "retry", str(first))
    assert (retried.code, retried.out) == (0, "1 row ready again\n")
    assert await rows.by_state("ready") == [first]

    discarded = await evworker("outbox", "discard", "--all", "--yes", "--json")
    assert discarded.json == {"matched": 2, "discarded": 2, "dry_run": False}
    assert "dead rows discarded" in discarded.err
    assert await rows.by_state("dead") == []


@pytest.fixture
async def three_dead(evworker: Command) -> Rows:
    """Three dead rows in SQLite."""
    evworker.environment["EVWORKER_DATABASE_URL"] = "sqlite:///shop.db"
    engine = open_engine(f"sqlite:///{evworker.folder}/shop.db")
    await make_tables(engine)
    await engine.dispose()
    rows = Rows(engine)
    await rows.add("dead", "a", "b", "c", attempts=10)
    await engine.dispose()
    return rows


async def test_what_is_no_dead_row_is_told_and_the_others_are_done(
    evworker: Command, three_dead: Rows
) -> None:
    retried = await evworker("outbox", "retry", "1", "1", "77")
    assert (retried.code, retried.out) == (1, "1 row ready again\n")
    assert "1 of the 2 rows named is not dead, or not there" in retried.error
    shown = await evworker("outbox", "dead", "--limit", "1")
    assert [line.split()[:3] for line in shown.out.splitlines()[1:]] == [
        ["2", "orders.placed", "b"]
    ]
    assert "there are more" in shown.err


@pytest.mark.parametrize(
    "arguments", [["retry"], ["discard", "--yes"], ["discard", "--dry-run"], ["discard"]]
)
async def test_where_nothing_named_is_dead_the_error_is_all_that_is_told(
    evworker: Command, three_dead: Rows, arguments: list[str]
) -> None:
    hint = "`evworker outbox dead` shows those that are\n"
    one = await evworker("outbox", *arguments, "99")
    assert (one.code, one.out) == (1, "")
    assert one.err == f"error: row 99 is not dead, or not there; {hint}"
    two = await evworker("outbox", *arguments, "98", "99")
    assert (two.code, two.out) == (1, "")
    assert two.err == f"error: 2 of the 2 rows named are not dead, or not there; {hint}"
    assert len(await three_dead.by_state("dead")) == 3
    await three_dead.engine.dispose()


async def test_nothing_is_discarded_without_being_asked_for_twice(
    evworker: Command, three_dead: Rows
) -> None:
    refused = await evworker("outbox", "discard", "--all")
    assert refused.code == 2
    assert "3 committed events will never be published. Add --yes" in refused.error
    tried = await evworker("outbox", "discard", "1", "2", "--dry-run")
    assert (tried.code, tried.out) == (0, "would discard 2 rows\n")

    wrong = await at_a_terminal(evworker, "y\n", "outbox", "discard", "--all")
    assert (wrong.code, wrong.out) == (1, "")
    assert "that is not the number; nothing was done" in wrong.err
    assert len(await three_dead.by_state("dead")) == 3

    right = await at_a_terminal(evworker, "3\n", "outbox", "discard", "--all")
    assert (right.code, right.out) == (0, "discarded 3 rows\n")
    assert await three_dead.by_state("dead") == []
    await three_dead.engine.dispose()


async def at_a_terminal(evworker: Command, typed: str, *arguments: str) -> Result:
    """Run it with a terminal for its stdin."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "evworker", *arguments),
            cwd=evworker.folder,
            env={**os.environ, **evworker.environment},
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate()
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())
