"""How PostgreSQL finds the rows: by an index, however many wait."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker.database.engine import open_engine
from evworker.broker.outbox import store as store_room
from evworker.broker.outbox.operating import dead_rows, outbox_status
from evworker.broker.outbox.store import OutboxStore, Refusal

ROWS = int(os.environ.get("EVWORKER_TEST_ROWS", "200000"))

# Every third row has no key; the rest share a thousand. One in fifty is scheduled.
FILL = """
INSERT INTO evworker_outbox (event_id, topic, key, body, created_at, state, due_at, attempts)
SELECT n::text, 'orders.placed', CASE WHEN n % 3 > 0 THEN 'k' || n % 1000 END, '{}', now(),
       CASE WHEN n % 50 = 0 THEN 'waiting' ELSE 'ready' END,
       CASE WHEN n % 50 = 0 THEN now() + interval '1 day' END, 0
FROM generate_series(1, :rows) AS n
"""
KINDS = ("SELECT", "UPDATE", "DELETE")


def explain_all(engine: AsyncEngine) -> dict[str, str]:
    """The plan of every statement about the outbox that this engine runs from now on."""
    plans: dict[str, str] = {}

    def explain(
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        new = statement not in plans
        if new and "evworker_outbox" in statement and statement.startswith(KINDS):
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans[statement] = plan_of(cursor)
            # And as it is planned after some runs: for any parameters.
            name = f"any_{len(plans)}"
            nothing = ", ".join(["NULL"] * len(parameters))
            cursor.execute("SET plan_cache_mode = force_generic_plan", ())
            cursor.execute(f"PREPARE {name} AS {statement}", ())
            cursor.execute(f"EXPLAIN EXECUTE {name}" + (f"({nothing})" if nothing else ""), ())
            plans[f"{statement} (any parameters)"] = plan_of(cursor)

    event.listen(engine.sync_engine, "before_cursor_execute", explain)
    return plans


def plan_of(cursor: Any) -> str:
    return "\n".join(line for (line,) in cursor.fetchall())


async def test_no_statement_of_a_relay_reads_the_whole_table(
    postgres_url: str, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_room, "_PROMOTE_EVERY_S", 0.0)
    async with postgres.begin() as connection:
        await connection.execute(text(FILL), {"rows": ROWS})
        await connection.execute(text("ANALYZE evworker_outbox"))
    engine = open_engine(postgres_url)
    plans = explain_all(engine)
    try:
        store = OutboxStore(engine, name="tests", keep_s=60.0)
        await store.look()
        await use_all_of(store)
        await use_all_of(OutboxStore(engine, name="tests"))
    finally:
        await engine.dispose()
    assert len(plans) >= 22, "each statement is looked at"
    for statement, plan in plans.items():
        assert "Seq Scan on evworker_outbox" not in plan, f"{statement}\n{plan}"
        assert "Index" in plan


async def test_what_is_held_blocked_or_dead_is_found_by_an_index(
    postgres_url: str, postgres: AsyncEngine
) -> None:
    async with postgres.begin() as connection:
        await connection.execute(text(FILL), {"rows": ROWS})
        await connection.execute(text("ANALYZE evworker_outbox"))
    engine = open_engine(postgres_url)
    plans = explain_all(engine)
    try:
        await outbox_status(engine)
        await dead_rows(engine)
    finally:
        await engine.dispose()
    # The others count all that there is, and read it all.
    by_index = {told: plans[told] for told in plans if any(word in told for word in WITH_INDEX)}
    assert len(by_index) == 2 * len(WITH_INDEX), "each is looked at, in both ways"
    for statement, plan in by_index.items():
        assert "Seq Scan on evworker_outbox" not in plan, f"{statement}\n{plan}"


WITH_INDEX = ("GROUP BY evworker_outbox.claimed_by", "count(DISTINCT", "failed_since")


async def use_all_of(store: OutboxStore) -> None:
    claim = await store.claim(500)
    assert claim is not None
    assert len(claim.seqs) == 500
    assert len(await store.read(claim)) == 500
    sent, (refused, late, left) = claim.seqs[:-3], claim.seqs[-3:]
    await store.settle(claim.token, sent)
    await store.back_off(
        claim.token, [Refusal(refused, 1, "no", 1.0)], dead_after_attempts=1, dead_after_s=0.0
    )
    await store.postpone(claim.token, [late], delay_s=1.0, error="late")
    await store.release(claim.token, [left])
    await store.prune()
