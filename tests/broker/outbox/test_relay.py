"""The relay on real brokers: what is committed arrives, in order per key, whoever stumbles."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import ConfigurationError, Connection, SchemaError
from evworker.broker.database.engine import open_engine
from evworker.broker.database.tables import locks, metadata, outbox, relays, seconds_from_now
from evworker.broker.outbox.operating import dead_rows, outbox_status, retry_dead
from evworker.broker.outbox.outbox import Outbox
from evworker.broker.outbox.relay import Relay
from tests.broker.conftest import Bind, Take
from tests.broker.events import OrderPlaced
from tests.broker.outbox.conftest import Arrivals, StartRelay
from tests.broker.outbox.written import let_time_pass, row, states, write
from tests.waiting import eventually


async def add(engine: AsyncEngine, *order_ids: str, key: str | None = None) -> None:
    async with engine.begin() as connection:
        await Outbox(source="tests").add_many(
            connection, [OrderPlaced(order_id=order_id) for order_id in order_ids], key=key
        )


def numbered(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{n:03}" for n in range(number)]


async def test_what_was_added_arrives_once_and_is_gone(
    engine: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    relay = await start_relay(engine)
    await add(engine, *numbered("free", 30))
    await add(engine, *numbered("a", 5), key="a")
    await eventually(lambda: arrivals.are(*numbered("free", 30), *numbered("a", 5)))
    await eventually(lambda: relay.counts.sent == 35)
    assert len(arrivals.orders) == 35
    assert arrivals.keys["a"] == numbered("a", 5)
    assert await states(engine) == {}


async def test_properties_are_those_of_a_published_event(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    queue = await bind("#")
    async with postgres.begin() as connection:
        envelope = await Outbox(source="shop").add(
            connection, OrderPlaced(order_id="1"), key="a", priority=4, headers={"tenant": "eu"}
        )
    await start_relay(postgres)
    messages = await eventually(lambda: take(queue))
    (message,) = messages
    assert message.body == envelope.encode()
    assert (message.message_id, message.type, message.app_id) == (
        envelope.id,
        envelope.topic,
        "shop",
    )
    assert (message.priority, message.headers) == (4, {"tenant": "eu"})
    assert message.correlation_id == envelope.correlation_id
    assert message.delivery_mode == 2


async def test_relays_side_by_side_keep_each_keys_order(
    engine: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    keys = ("a", "b", "c")
    for number in range(6):
        for key in keys:
            await add(engine, *(f"{key}{number}{step}" for step in range(5)), key=key)
        await add(engine, *(f"free{number}{step}" for step in range(5)))
    for _ in range(3):
        await start_relay(engine, batch=7)
    await eventually(lambda: states_are_empty(engine), timeout_s=30)
    await arrivals.look()
    assert len(arrivals.orders) == 6 * 4 * 5
    assert max(Counter(arrivals.ids).values()) == 1
    for key in keys:
        assert arrivals.keys[key] == sorted(arrivals.keys[key])
        assert len(arrivals.keys[key]) == 30


async def states_are_empty(engine: AsyncEngine) -> bool:
    return await states(engine) == {}


async def test_a_full_queue_blocks_its_keys_and_nobody_else(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    full = await bind("orders.placed", name="full", max_length=1, overflow="reject-publish")
    other = Arrivals(await bind("orders.other", name="other"), take)
    await write(postgres, "a", order_id="1")
    relay = await start_relay(postgres)
    await eventually(lambda: relay.counts.sent == 1)
    refused, behind, _ = await write(postgres, "a", "a", "a", order_id="2")
    await write(postgres, None, "b", topic="orders.other", order_id="3")
    await eventually(lambda: relay.counts.refused == 1)
    await eventually(lambda: other.are("3"))
    await eventually(lambda: relay.counts.sent == 3)
    told = await row(postgres, refused)
    assert (told["state"], told["attempts"]) == ("waiting", 1)
    assert "queue is full" in told["last_error"]
    assert (await row(postgres, behind))["attempts"] == 0
    await take(full)
    await let_time_pass(postgres)
    await eventually(lambda: relay.counts.sent == 4)
    await eventually(lambda: relay.counts.refused == 2)  # there is room for one


async def test_a_refused_row_is_dead_after_attempts_and_time_and_can_be_retried(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    full = await bind("#", max_length=1, overflow="reject-publish")
    await write(postgres, None)
    relay = await start_relay(postgres, dead_after_attempts=2, dead_after="1h")
    await eventually(lambda: relay.counts.sent == 1)
    seq, behind = await write(postgres, "a", "a", order_id="2")
    for attempts in (1, 2):
        await eventually(lambda: relay.counts.refused == attempts)  # noqa: B023
        await eventually(lambda: is_in(postgres, seq, "waiting"))
        await let_time_pass(postgres, seq)
    await eventually(lambda: relay.counts.refused == 3)  # attempts are used up, time is not
    async with postgres.begin() as connection:
        an_hour_ago = {"failed_since": seconds_from_now(-3601.0), "due_at": seconds_from_now(-1.0)}
        await connection.execute(update(outbox).where(outbox.c.seq == seq).values(an_hour_ago))
    await eventually(lambda: relay.counts.dead == 1)
    (dead,) = await dead_rows(postgres)
    assert (dead.seq, dead.attempts, dead.key) == (seq, 4, "a")
    await eventually(lambda: are(postgres, {seq: "dead", behind: "ready"}))
    await full.purge()
    assert await retry_dead(postgres) == 1
    await eventually(lambda: relay.counts.sent == 2)


async def are(engine: AsyncEngine, expected: dict[int, str]) -> bool:
    return await states(engine) == expected


async def is_in(engine: AsyncEngine, seq: int, state: str) -> bool:
    return (await states(engine)).get(seq) == state


@pytest.mark.parametrize(
    "columns",
    [
        {"priority": 900},
        {"headers": b"not JSON"},
        {"headers": b'{"x-death":"1"}'},
        {"body": b"\xff not JSON"},
        {"body": b"{}" + b" " * (600 * 1024 * 1024 // 100)},
    ],
    ids=["priority", "headers", "a header of the broker's", "body", "six megabytes"],
)
async def test_a_row_that_nobody_could_send_harms_no_other(
    postgres: AsyncEngine,
    start_relay: StartRelay,
    bind: Bind,
    take: Take,
    columns: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    monkeypatch.setattr("evworker.broker.version.BrokerVersion.max_message_bytes", 1_000_000)
    (bad,) = await write(postgres, None, **columns)
    await write(postgres, None, None, order_id="fine")
    relay = await start_relay(postgres)
    await eventually(lambda: relay.counts.sent == 2)
    await eventually(lambda: relay.counts.refused == 1)
    assert await arrivals.look() == ["fine", "fine"]
    assert await states(postgres) == {bad: "waiting"}


async def test_scheduled_rows_go_when_they_are_due(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    await start_relay(postgres)
    async with postgres.begin() as connection:
        later = Outbox(source="tests")
        await later.add(connection, OrderPlaced(order_id="tomorrow"), delay="24h")
        await later.add(connection, OrderPlaced(order_id="soon"), delay="300ms")
    await eventually(lambda: arrivals.are("soon"))
    assert (await outbox_status(postgres)).scheduled == 1


async def test_what_was_sent_is_kept_if_asked_for(
    engine: AsyncEngine, start_relay: StartRelay
) -> None:
    (seq,) = await write(engine, None)
    relay = await start_relay(engine, keep="1h")
    await eventually(lambda: relay.counts.sent == 1)
    assert await states(engine) == {seq: "sent"}


async def test_a_lease_from_before_the_clock_was_set_back_is_no_obstacle(
    postgres: AsyncEngine, start_relay: StartRelay
) -> None:
    await write(postgres, "a", state="claimed", claim="gone", due_at=None)
    async with postgres.begin() as connection:
        await connection.execute(update(outbox).values(due_at=seconds_from_now(86_400.0)))
    relay = await start_relay(postgres)
    await eventually(lambda: relay.counts.sent == 1)


async def test_late_commits_are_published(
    server: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    relay = await start_relay(server)
    async with server.connect() as late:
        await Outbox(source="tests").add(late, OrderPlaced(order_id="late"))
        await add(server, "early")
        await eventually(lambda: relay.counts.sent == 1)
        await late.commit()
    await eventually(lambda: arrivals.are("early", "late"))


async def test_two_relays_of_one_identity_share_the_work(
    postgres: AsyncEngine, start_relay: StartRelay, bind: Bind, take: Take
) -> None:
    arrivals = Arrivals(await bind("#"), take)
    one, two = [await start_relay(postgres, name="twin", batch=5) for _ in range(2)]
    await eventually(lambda: both_are_listed(postgres))
    await add(postgres, *numbered("", 60))
    await eventually(lambda: one.counts.sent + two.counts.sent == 60)
    assert sorted(await arrivals.look()) == numbered("", 60)


async def both_are_listed(engine: AsyncEngine) -> bool:
    return [relay.name for relay in (await outbox_status(engine)).relays] == ["twin", "twin"]


async def test_a_stopped_relay_leaves_nothing_claimed_and_is_off_the_list(
    engine: AsyncEngine, broker_url: str, exchange: str
) -> None:
    relay = Relay(engine, broker_url, exchange=exchange, batch=50)
    await write(engine, *["a"] * 150)
    running = asyncio.create_task(relay.run())
    await eventually(lambda: relay.counts.sent or relay.ready.is_set())
    relay.stop()
    await running
    left = await states(engine)
    assert len(left) + relay.counts.sent == 150
    assert set(left.values()) <= {"ready"}
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(relays)) == 0


async def test_once_is_one_batch(engine: AsyncEngine, broker_url: str, exchange: str) -> None:
    await write(engine, None, None, None)
    async with Relay(engine, broker_url, exchange=exchange, batch=2) as relay:
        assert (await relay.run_once()).sent == 2
        assert (await relay.run_once()).sent == 1
        assert (await relay.run_once()).sent == 0
    async with engine.begin() as connection:
        await connection.execute(delete(locks))
    await write(engine, None)
    assert (await relay.run_once()).sent == 1


async def test_a_connection_that_is_lent_stays_open(
    postgres: AsyncEngine, connection: Connection, exchange: str
) -> None:
    await write(postgres, None)
    relayed = await Relay(postgres, connection, exchange=exchange).run_once()
    assert relayed.sent == 1
    channel = await connection.channel()
    await channel.close()


async def test_without_tables_it_does_not_start(postgres_url: str, broker_url: str) -> None:
    with pytest.raises(SchemaError, match="outbox init"):
        await Relay(postgres_url, broker_url).run()


async def test_tables_that_are_taken_away_end_it(
    postgres: AsyncEngine, broker_url: str, exchange: str
) -> None:
    relay = Relay(postgres, broker_url, exchange=exchange)
    running = asyncio.create_task(relay.run())
    await relay.ready.wait()
    async with postgres.begin() as connection:
        await connection.run_sync(metadata.drop_all)
    with pytest.raises(SchemaError, match="outbox init"):
        await running


@pytest.mark.parametrize("options", [{"batch": 0}, {"dead_after_attempts": 0}, {"lease": "soon"}])
def test_options_that_can_not_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Relay(open_engine("sqlite://"), "amqp://localhost", **options)  # type: ignore[arg-type]
