"""Claims, and the ways in which they end, on each kind of database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from evworker.broker import ConfigurationError, SchemaError
from evworker.broker.database.engine import open_engine
from evworker.broker.database.tables import locks, outbox, seconds_from_now
from evworker.broker.outbox import store as store_room
from evworker.broker.outbox.store import Claim, OutboxStore, Refusal
from tests.broker.outbox.written import let_time_pass, row, states, write, write_one

MakeStore = Callable[..., OutboxStore]


@pytest.fixture
def make_store(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
    monkeypatch.setattr(store_room, "_PROMOTE_EVERY_S", 0.0)

    def made(*, lease_s: float = 60.0, keep_s: float | None = None) -> OutboxStore:
        return OutboxStore(engine, name="tests", lease_s=lease_s, keep_s=keep_s)

    return made


async def claimed(store: OutboxStore, limit: int = 100) -> Claim:
    claim = await store.claim(limit)
    assert claim is not None
    return claim


def refusal(seq: int, attempts: int = 1) -> Refusal:
    return Refusal(seq, attempts, "the queue is full", 30.0)


async def refuse(store: OutboxStore, token: str, *refusals: Refusal, attempts: int = 10) -> int:
    return await store.back_off(token, refusals, dead_after_attempts=attempts, dead_after_s=3600)


async def test_a_claim_takes_the_lowest_rows_and_leaves_the_rest(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    written = await write(engine, None, "a", None, "b", "a")
    first, second = make_store(), make_store()
    mine, others = await claimed(first, 3), await claimed(second)
    assert mine.seqs == written[:3]
    assert others.seqs == [written[3]]  # the second of "a" is behind the first
    assert await second.claim(100) is None


async def test_what_is_read_is_what_was_written(engine: AsyncEngine, make_store: MakeStore) -> None:
    (seq,) = await write(engine, "a", priority=3, headers=b'{"tenant":"eu"}')
    store = make_store()
    (read,) = await store.read(await claimed(store))
    kept = await row(engine, seq)
    assert (read.seq, read.event_id, read.topic, read.key) == (
        seq,
        kept["event_id"],
        "orders.placed",
        "a",
    )
    assert (read.body, read.priority, read.headers) == (kept["body"], 3, b'{"tenant":"eu"}')
    assert kept["claimed_by"] == "tests"


async def test_settling_removes_what_is_ours_and_nothing_else(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    written = await write(engine, None, None, None)
    store = make_store()
    mine, others = await claimed(store, 2), await claimed(store)
    assert await store.settle(mine.token, [*mine.seqs, *others.seqs]) == 2
    assert await states(engine) == {written[2]: "claimed"}


async def test_after_its_lease_a_claim_ends_nothing(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    (seq,) = await write(engine, "a")
    slow, quick = make_store(), make_store()
    stale = await claimed(slow)
    await let_time_pass(engine)
    fresh = await claimed(quick)
    assert fresh.seqs == [seq]
    if stale.rows is None:  # MariaDB returns nothing of an update, they are read later
        assert await slow.read(stale) == []
    assert await slow.settle(stale.token, [seq]) == 0
    assert await slow.release(stale.token, [seq]) == 0
    assert await slow.postpone(stale.token, [seq], delay_s=1.0, error="late") == 0
    assert await refuse(slow, stale.token, refusal(seq, 99), attempts=1) == 0
    assert await states(engine) == {seq: "claimed"}
    assert await quick.settle(fresh.token, [seq]) == 1


async def test_a_lease_is_not_over_before_its_time(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    await write(engine, None)
    await claimed(make_store(lease_s=30))
    assert await make_store(lease_s=30).claim(1) is None


async def test_a_refused_row_blocks_its_key_and_no_other(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    written = await write(engine, "a", "a", "b", None)
    store = make_store()
    first = await claimed(store, 1)
    assert await refuse(store, first.token, refusal(written[0])) == 0
    assert (await claimed(store)).seqs == written[2:]
    await let_time_pass(engine, written[0])
    assert (await claimed(store)).seqs == written[:2]


async def test_a_refusal_is_written_down(engine: AsyncEngine, make_store: MakeStore) -> None:
    (seq,) = await write(engine, None)
    store = make_store()
    await refuse(store, (await claimed(store)).token, refusal(seq))
    kept = await row(engine, seq)
    assert (kept["state"], kept["attempts"], kept["last_error"]) == (
        "waiting",
        1,
        "the queue is full",
    )
    assert kept["claim"] is None
    assert 25 < (kept["due_at"] - kept["failed_since"]).total_seconds() < 35


async def test_dead_is_what_has_used_up_its_attempts_and_its_time(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    old, young = await write(engine, "a", "b")
    store = make_store()
    for attempt in (1, 2):
        claim = await claimed(store)
        assert claim.seqs == [old, young]
        dead = await refuse(
            store, claim.token, *(refusal(seq, attempt) for seq in claim.seqs), attempts=3
        )
        assert dead == 0
        await let_time_pass(engine)
    long_ago = update(outbox).where(outbox.c.seq == old)
    async with engine.begin() as connection:
        await connection.execute(long_ago.values(failed_since=seconds_from_now(-3601.0)))
    claim = await claimed(store)
    assert await refuse(store, claim.token, refusal(old, 3), refusal(young, 3), attempts=3) == 1
    assert await states(engine) == {old: "dead", young: "waiting"}
    assert (await row(engine, old))["due_at"] is None


async def test_a_dead_row_blocks_its_key(engine: AsyncEngine, make_store: MakeStore) -> None:
    await write(engine, "a", state="dead", attempts=10)
    await write(engine, "a", "a")
    free = await write(engine, "b", None)
    assert (await claimed(make_store())).seqs == free


async def test_a_postponed_row_blocks_its_key_and_is_no_nearer_to_death(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    first, _ = await write(engine, "a", "a")
    store = make_store()
    claim = await claimed(store, 1)
    assert await store.postpone(claim.token, [first], delay_s=10.0, error="no confirm") == 1
    assert await store.claim(10) is None
    assert (await row(engine, first))["failed_since"] is None


async def test_scheduled_rows_go_when_due_and_block_nobody_before(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    (scheduled,) = await write(engine, "a", due_in_s=3600.0)
    (ready,) = await write(engine, "a")
    store = make_store()
    assert (await claimed(store)).seqs == [ready]
    look = await store.look()
    assert not look.ready
    assert look.due_in_s is not None
    assert 0 < look.due_in_s <= 60  # the lease; the wait is longer
    await let_time_pass(engine)
    assert (await claimed(store)).seqs == [scheduled, ready]


async def test_a_look_sees_what_is_ready(engine: AsyncEngine, make_store: MakeStore) -> None:
    store = make_store()
    look = await store.look()
    assert (look.ready, look.due_in_s) == (False, None)
    await write(engine, None)
    assert (await store.look()).ready


async def test_leases_from_before_the_clock_was_set_back_are_over(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    written = await write(engine, "a", None)
    store = make_store(lease_s=60)
    await claimed(store)
    async with engine.begin() as connection:
        await connection.execute(update(outbox).values(due_at=seconds_from_now(7200.0)))
    assert (await claimed(store)).seqs == written


async def test_what_was_sent_can_be_kept_for_a_while(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    written = await write(engine, "a", "a")
    store = make_store(keep_s=3600)
    claim = await claimed(store, 1)
    await store.settle(claim.token, claim.seqs)
    assert await store.prune() == 0
    assert (await claimed(store)).seqs == written[1:]  # a sent row blocks nobody
    await let_time_pass(engine, written[0])
    assert await store.prune() == 1
    assert await states(engine) == {written[1]: "claimed"}


async def test_a_batch_is_cut_where_its_bodies_get_large(
    engine: AsyncEngine, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_room, "_BYTES_AT_ONCE", 1000)
    written = await write(engine, None, None, None, body=b"x" * 600)
    store = make_store()
    assert (await claimed(store)).seqs == written[:1]


async def test_tables_of_a_migration_need_no_lock_row(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    async with engine.begin() as connection:
        await connection.execute(delete(locks))
    written = await write(engine, None, None)
    assert (await claimed(make_store(), 1)).seqs == written[:1]
    assert (await claimed(make_store())).seqs == written[1:]


async def test_without_tables_the_command_that_makes_them_is_named(database_url: str) -> None:
    engine = open_engine(database_url)
    try:
        with pytest.raises(SchemaError, match="outbox init"):
            await OutboxStore(engine, name="tests").claim(1)
    finally:
        await engine.dispose()


async def test_relays_of_one_name_are_two(engine: AsyncEngine, make_store: MakeStore) -> None:
    written = await write(engine, None, None)
    one, other = make_store(), make_store()
    await one.beat(sent=1, per_second=1)
    await other.beat(sent=2, per_second=2)
    mine, others = await claimed(one, 1), await claimed(other)
    assert await one.settle(mine.token, written) == 1
    assert await other.settle(others.token, written) == 1
    await one.leave()
    await other.beat(sent=3, per_second=3)


async def test_late_commits_are_never_passed_over(server: AsyncEngine) -> None:
    store = OutboxStore(server, name="tests")
    async with server.connect() as late:
        early_number = await write_one(late, "late")
        later = await write(server, None, None)
        assert later[0] > early_number
        claim = await claimed(store)
        assert claim.seqs == later
        assert await store.settle(claim.token, later) == 2
        await late.commit()
    assert (await claimed(store)).seqs == [early_number]


@pytest.mark.parametrize("lease_s", [0.5, 3601])
def test_a_lease_has_bounds(lease_s: float) -> None:
    with pytest.raises(ConfigurationError, match="1 second to 1 hour"):
        OutboxStore(create_async_engine("sqlite+aiosqlite://"), name="tests", lease_s=lease_s)


async def test_a_relay_with_a_shorter_lease_takes_nothing_of_another(
    engine: AsyncEngine, make_store: MakeStore
) -> None:
    await write(engine, "a", None)
    await claimed(make_store(lease_s=60))
    assert await make_store(lease_s=20).claim(10) is None
