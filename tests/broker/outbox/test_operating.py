"""What an operator sees of the outbox, and can do with the dead, on each kind of database."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import dead_rows, discard_dead, outbox_status, retry_dead
from evworker.broker.database.tables import outbox, relays, seconds_from_now
from evworker.broker.outbox.store import OutboxStore
from tests.broker.outbox.written import row, states, write


async def test_an_empty_outbox_says_so(engine: AsyncEngine) -> None:
    status = await outbox_status(engine)
    assert (status.pending, status.dead, status.sent_kept, status.blocked_keys) == (0, 0, 0, 0)
    assert status.oldest_age_s is None
    assert status.relays == []
    assert status.leases == []


async def test_rows_are_counted_by_what_they_wait_for(engine: AsyncEngine) -> None:
    claimed = await write(engine, None, "a")
    store = OutboxStore(engine, name="billing:1")
    await store.claim(10)
    await write(engine, None, "b", "c")
    await write(engine, "b", due_in_s=3600.0, attempts=1)
    await write(engine, "c", "c", due_in_s=3600.0)
    await write(engine, "d", "d", state="dead", attempts=10)
    await write(engine, None, state="sent")
    async with engine.begin() as connection:
        old = {"created_at": seconds_from_now(-90.0)}
        await connection.execute(update(outbox).where(outbox.c.seq == claimed[0]).values(old))
    status = await outbox_status(engine)
    assert (status.ready, status.claimed, status.scheduled, status.backing_off) == (3, 2, 2, 1)
    assert (status.dead, status.sent_kept, status.pending) == (2, 1, 8)
    assert status.blocked_keys == 2
    assert status.oldest_age_s is not None
    assert 89 < status.oldest_age_s < 120
    (lease,) = status.leases
    assert (lease.name, lease.rows) == ("billing:1", 2)


async def test_scheduled_and_dead_rows_make_nothing_old(engine: AsyncEngine) -> None:
    await write(engine, None, due_in_s=3600.0)
    await write(engine, None, state="dead")
    assert (await outbox_status(engine)).oldest_age_s is None


async def test_relays_are_listed_while_they_are_heard_of(engine: AsyncEngine) -> None:
    for name, rate in (("one", 100), ("two", 20)):
        await OutboxStore(engine, name=name).beat(sent=5, per_second=rate)
    status = await outbox_status(engine)
    assert [relay.name for relay in status.relays] == ["one", "two"]
    assert status.per_second == 120
    async with engine.begin() as connection:
        silent = update(relays).where(relays.c.name == "one")
        await connection.execute(silent.values(seen_at=seconds_from_now(-61.0)))
    assert [relay.name for relay in (await outbox_status(engine)).relays] == ["two"]
    store = OutboxStore(engine, name="three")
    await store.beat(sent=0, per_second=0)
    await store.leave()
    assert [relay.name for relay in (await outbox_status(engine)).relays] == ["two"]


async def test_dead_rows_are_shown_with_what_killed_them(engine: AsyncEngine) -> None:
    first, second = await write(engine, "a", "b", state="dead", attempts=10, last_error="too large")
    await write(engine, None)
    (shown,) = await dead_rows(engine, limit=1)
    assert (shown.seq, shown.key, shown.attempts, shown.last_error) == (first, "a", 10, "too large")
    assert [dead.seq for dead in await dead_rows(engine)] == [first, second]


async def test_a_retried_row_begins_again_and_nothing_else_is_touched(engine: AsyncEngine) -> None:
    first, second = await write(engine, "a", "b", state="dead", attempts=10, last_error="full")
    (ready,) = await write(engine, "c")
    assert await retry_dead(engine, [first, ready, 10**9]) == 1
    kept = await row(engine, first)
    assert (kept["state"], kept["attempts"], kept["failed_since"]) == ("ready", 0, None)
    assert (await row(engine, second))["state"] == "dead"
    assert await retry_dead(engine) == 1
    assert await retry_dead(engine, []) == 0
    assert set((await states(engine)).values()) == {"ready"}


async def test_only_dead_rows_can_be_discarded(engine: AsyncEngine) -> None:
    first, second = await write(engine, "a", "b", state="dead")
    (ready,) = await write(engine, "c")
    assert await discard_dead(engine, [first, ready]) == 1
    assert await states(engine) == {second: "dead", ready: "ready"}
