"""Replay: back to where it failed, in order, once confirmed and not before; nothing is lost."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest
from aio_pika.abc import AbstractChannel
from pamqp import commands

from evworker.broker import (
    BrokerError,
    ConfigurationError,
    Connection,
    Letter,
    LetterFilter,
    Publisher,
    PublishNackedError,
    Queue,
    QueueNotFoundError,
    Topology,
    apply_topology,
    count_messages,
    purge_dead_letters,
    read_dead_letters,
    replay_dead_letters,
)
from evworker.broker.deadletters.putting import MOST_AT_ONCE
from evworker.broker.deadletters.taking import taking
from evworker.broker.failure import FAILURE_HEADERS
from tests.broker.conftest import Take
from tests.broker.deadletters.letters import AT, Sent, all_in, failed, ids_in, order, put
from tests.conftest import Cleanup
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.wire import Wire, channel_of, method_in


def numbered(*numbers: int) -> list[str]:
    return [f"id-{number}" for number in numbers]


async def test_letters_go_back_to_their_queue_in_order(
    connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, map(order, range(1_000)))
    done = await replay_dead_letters(connection, letters)
    assert (done.queue, done.to, done.waiting, done.replayed) == (letters, queue, 1_000, 1_000)
    assert await ids_in(connection, queue) == numbered(*range(1_000))
    assert await count_messages(connection, letters) == 0


async def test_those_that_are_not_meant_stay_in_their_order(
    connection: Connection, queue: str, letters: str
) -> None:
    def one(number: int) -> Sent:
        return order(number, failure=failed("shop.Odd" if number % 2 else "shop.Even"))

    await put(connection, letters, map(one, range(3_000)))
    done = await replay_dead_letters(connection, letters, LetterFilter(errors=("Odd",)))
    assert done.replayed == 1_500
    assert await ids_in(connection, letters) == numbered(*range(0, 3_000, 2))
    assert await ids_in(connection, queue) == numbered(*range(1, 3_000, 2))
    # And once more, with the line of what was handed back before what is new.
    await put(connection, letters, map(order, range(3_000, 3_010)))
    done = await replay_dead_letters(connection, letters, limit=700)
    assert done.replayed == 700
    assert await ids_in(connection, letters) == numbered(
        *range(1_400, 3_000, 2), *range(3_000, 3_010)
    )


async def test_attempts_start_afresh_and_the_history_stays(
    connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, [order(1)])
    await replay_dead_letters(connection, letters)
    (copy,) = await all_in(connection, queue)
    assert FAILURE_HEADERS & set(copy.headers) == {"evw-origin-exchange", "evw-origin-routing-key"}
    assert (copy.failure.attempts, copy.replays, copy.topic) == (0, 1, "orders.placed")
    (first,) = copy.history
    assert (first.at, first.reason, first.error_type) == (AT, "failed", "shop.CardDeclined")
    assert (first.error, first.attempts) == ("no funds", 3)
    # It fails again, as a worker would tell it: with what it carries, and the failure.
    again = failed("builtins.TimeoutError", reason="given-up", failed_at=datetime.now(UTC))
    await put(connection, letters, [Sent(id="id-1", failure=again, headers=dict(copy.headers))])
    await purge_dead_letters(connection, queue)
    await replay_dead_letters(connection, letters)
    (copy,) = await all_in(connection, queue)
    assert copy.replays == 2
    assert [death.error_type for death in copy.history] == [
        "shop.CardDeclined",
        "builtins.TimeoutError",
    ]
    assert copy.history[0].replayed_at is not None
    assert copy.history[0].replayed_at < (copy.history[1].replayed_at or AT)


async def test_the_last_ten_deaths_are_remembered(
    connection: Connection, queue: str, letters: str
) -> None:
    headers: dict[str, Any] = {}
    for number in range(12):
        sent = Sent(id="a", failure=failed(f"Error{number}", error_message="x" * 4_000))
        await put(connection, letters, [Sent(id="a", failure=sent.failure, headers=headers)])
        await replay_dead_letters(connection, letters)
        (copy,) = await all_in(connection, queue)
        headers = dict(copy.headers)
        await purge_dead_letters(connection, queue)
    assert [death.error_type for death in copy.history] == [f"Error{n}" for n in range(2, 12)]
    assert copy.replays == 12
    assert len(str(copy.headers["evw-history"])) < 6_000


async def test_ids_priority_and_foreign_headers_are_kept(
    connection: Connection, queue: str, letters: str
) -> None:
    properties = {
        "priority": 7,
        "correlation_id": "c",
        "message_type": "orders.placed",
        "app_id": "till",
        "reply_to": "somewhere",
        "timestamp": AT,
        "content_type": "application/json",
    }
    headers: dict[str, Any] = {
        "tenant": "acme",
        "tries": 2,
        "table": {"a": [1, None, True]},
        "bytes": bytearray(b"\xff\x00"),
        "at": AT,
    }
    await put(connection, letters, [order(1, properties=properties, headers=headers)])
    await replay_dead_letters(connection, letters)
    (copy,) = await all_in(connection, queue)
    assert {name: getattr(copy.properties, name) for name in properties} == properties
    assert {name: copy.headers[name] for name in headers} == headers | {"bytes": b"\xff\x00"}
    assert copy.body == order(1).body


async def test_the_brokers_own_headers_are_not_sent_again(
    publisher: Publisher,
    onlooker: AbstractChannel,
    connection: Connection,
    queue: str,
    letters: str,
) -> None:
    """With its x-death on it, 3.x would drop the letter when it dies a second time."""
    plain = await onlooker.get_queue(queue)
    await put(connection, queue, [Sent(id="a", body=b"[1]")])

    async def killed() -> bool:
        message = await plain.get(fail=False)
        if message is not None:
            await message.reject(requeue=True)
        return bool(await count_messages(connection, letters))

    for round_ in (1, 2, 3):
        await eventually(killed)
        (letter,) = await all_in(connection, letters)
        assert (letter.failure.reason, letter.replays) == ("crashed", round_ - 1)
        assert "x-death" in letter.headers
        await replay_dead_letters(connection, letters)
        (copy,) = await all_in(connection, queue)
        assert not [name for name in copy.headers if name in {"x-death", "x-last-death-queue"}]
        assert copy.history[-1].reason == "crashed"


async def test_what_fails_again_is_not_picked_up_again(
    connection: Connection, queue: str, letters: str
) -> None:
    """A consumer that fails at once, beside a replay that takes its time."""
    await put(connection, letters, map(order, range(60)))
    channel = await connection.channel()
    back = await connection.channel(confirms=True)
    handled: list[str] = []

    async def fail(message: Any) -> None:
        properties = message.header.properties
        handled.append(properties.message_id)
        if len(handled) <= 15:  # fewer than make the replay stop
            properties.headers |= failed("Again").to_headers()
            await back.basic_publish(b"{}", routing_key=letters, properties=properties)
        await channel.basic_ack(message.delivery.delivery_tag)

    await channel.basic_consume(queue, fail)
    done = await replay_dead_letters(connection, letters, rate=100)
    assert (done.replayed, done.was_stopped) == (60, False)
    await eventually(lambda: len(handled) == 60)
    assert sorted(await ids_in(connection, letters), key=str) == sorted(handled[:15])
    assert len(set(handled)) == 60
    await channel.close()


async def test_it_stops_by_itself_when_they_keep_failing(
    connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, map(order, range(2_000)))
    channel = await connection.channel()
    back = await connection.channel(confirms=True)

    async def fail(message: Any) -> None:
        properties = message.header.properties
        properties.headers |= failed("Again").to_headers()
        await back.basic_publish(b"{}", routing_key=letters, properties=properties)
        await channel.basic_ack(message.delivery.delivery_tag)

    await channel.basic_qos(prefetch_count=50)
    await channel.basic_consume(queue, fail)
    done = await replay_dead_letters(connection, letters, rate=200)
    assert done.was_stopped
    assert 20 <= done.failed_again <= done.replayed < 1_000

    async def all_back() -> bool:
        return await count_messages(connection, letters) == 2_000

    await eventually(all_back)
    await channel.close()


async def test_a_limit_is_a_limit(connection: Connection, queue: str, letters: str) -> None:
    await put(connection, letters, map(order, range(500)))
    done = await replay_dead_letters(connection, letters, limit=3)
    assert done.replayed == 3
    assert await ids_in(connection, queue) == numbered(0, 1, 2)
    assert await ids_in(connection, letters) == numbered(*range(3, 500))


async def test_letters_with_one_id_or_none_are_all_replayed(
    connection: Connection, queue: str, letters: str
) -> None:
    same = [Sent(id="same", body=b"%d" % number, failure=failed()) for number in range(50)]
    nameless = [Sent(id=None, body=b"%d" % number, failure=failed()) for number in range(50, 60)]
    await put(connection, letters, [*same, *nameless])
    assert (await replay_dead_letters(connection, letters)).replayed == 60
    bodies = [letter.body for letter in await all_in(connection, queue)]
    assert bodies == [b"%d" % number for number in range(60)]


async def test_it_says_how_many_must_fail_again(
    connection: Connection, queue: str, letters: str
) -> None:
    reasons = ["failed", "undecodable", "invalid", "crashed"]
    sent = [order(n, failure=failed(reason=reason)) for n, reason in enumerate(reasons)]
    await put(connection, letters, sent)
    done = await replay_dead_letters(connection, letters)
    assert (done.replayed, done.hopeless) == (4, 2)


async def test_another_queue_may_be_named_and_the_unrouted_need_one(
    publisher: Publisher, connection: Connection, exchange: str, letters: str, cleanup: Cleanup
) -> None:
    other = cleanup.queue(f"{exchange}.other")
    await apply_topology(connection, Topology(queues=(Queue(other, {"x-queue-type": "quorum"}),)))
    channel = await connection.channel(confirms=True)
    await channel.basic_publish(b"{}", exchange=exchange, routing_key="nobody.wants")
    await channel.close()
    unrouted = f"{exchange}.unrouted"

    async def kept() -> bool:
        return await count_messages(connection, unrouted) == 1

    await eventually(kept)
    with pytest.raises(ConfigurationError, match="never failed on a queue"):
        await replay_dead_letters(connection, unrouted)
    with pytest.raises(ConfigurationError, match="to itself"):
        await replay_dead_letters(connection, letters, to=letters)
    assert (await replay_dead_letters(connection, unrouted, to=other)).replayed == 1
    (copy,) = await all_in(connection, other)
    assert copy.topic == "nobody.wants"
    assert copy.failure.origin_exchange == exchange


async def test_a_queue_that_is_not_there_gets_nothing(
    connection: Connection, queue: str, letters: str, unique: str
) -> None:
    await put(connection, letters, map(order, range(3)))
    with pytest.raises(QueueNotFoundError, match=rf"no queue '{unique}\.none'"):
        await replay_dead_letters(connection, letters, to=f"{unique}.none")
    with pytest.raises(QueueNotFoundError, match=rf"no queue '{unique}\.none\.dlq'"):
        await replay_dead_letters(connection, f"{unique}.none.dlq", to=queue)
    assert await ids_in(connection, letters) == numbered(0, 1, 2)


async def test_a_full_queue_ends_it_and_loses_nothing(
    connection: Connection, letters: str, exchange: str, cleanup: Cleanup
) -> None:
    small = cleanup.queue(f"{exchange}.small")
    arguments: dict[str, str | int] = {
        "x-queue-type": "classic",
        "x-max-length": 5,
        "x-overflow": "reject-publish",
    }
    await apply_topology(connection, Topology(queues=(Queue(small, arguments),)))
    await put(connection, letters, map(order, range(1_000)))
    with pytest.raises(PublishNackedError, match=r"letters were replayed before; run it again"):
        await replay_dead_letters(connection, letters, to=small)

    async def nothing_lost() -> bool:
        there = [*await ids_in(connection, small), *await ids_in(connection, letters)]
        return sorted(there, key=str) == sorted(numbered(*range(1_000)))

    await eventually(nothing_lost)


async def test_a_lost_connection_loses_nothing_and_it_can_be_run_again(
    connection: Connection, proxy: Proxy, queue: str, letters: str
) -> None:
    await put(connection, letters, map(order, range(2_000)))
    async with Connection(proxy.address, name="cut") as breaking:

        def cut_soon(replayed: int) -> None:
            if replayed == 700:
                proxy.cut()

        with pytest.raises(BrokerError, match="run it again for the rest"):
            await replay_dead_letters(breaking, letters, on_progress=cut_soon)

    async def none_held() -> bool:
        here, there = (
            await count_messages(connection, letters),
            len(await ids_in(connection, queue)),
        )
        return (here or 0) + there >= 2_000

    await eventually(none_held)
    await replay_dead_letters(connection, letters)
    assert await count_messages(connection, letters) == 0
    there = await ids_in(connection, queue)
    assert set(there) == set(numbered(*range(2_000)))
    assert len(there) - 2_000 <= MOST_AT_ONCE


@pytest.mark.usefixtures("queue")
async def test_letters_are_removed_together_where_nothing_is_kept_before_them(
    connection: Connection, wire: Wire, letters: str
) -> None:
    """Told of each by itself, a broker forgets hundreds when the connection is cut."""
    removed: defaultdict[int, set[int]] = defaultdict(set)
    needless: list[int] = []

    def see(_connection: int, data: bytes) -> bytes:
        if isinstance(ack := method_in(data), commands.Basic.Ack):
            tags = removed[channel_of(data)]
            if ack.multiple:
                tags.update(range(1, ack.delivery_tag + 1))
            elif tags >= {*range(1, ack.delivery_tag)}:
                needless.append(ack.delivery_tag)
            tags.add(ack.delivery_tag)
        return data

    await put(connection, letters, map(order, range(500)))
    wire.from_client = see
    async with Connection(wire.url, name="watched") as watched:
        await replay_dead_letters(watched, letters)
    assert sum(map(len, removed.values())) == 500
    assert needless == []
    assert await count_messages(connection, letters) == 0


async def test_one_that_is_cancelled_leaves_nothing_in_both_places(
    connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, map(order, range(2_000)))
    started = asyncio.Event()
    replay = asyncio.create_task(
        replay_dead_letters(connection, letters, rate=500, on_progress=lambda _: started.set())
    )
    await started.wait()
    replay.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replay
    here, there = await ids_in(connection, letters), await ids_in(connection, queue)
    assert [*there, *here] == numbered(*range(2_000))


async def test_what_is_held_for_long_is_handed_back_and_taken_again(
    connection: Connection, queue: str, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker closes the channel of whoever holds a letter for half an hour."""
    monkeypatch.setattr("evworker.broker.deadletters.replay._HELD_S", 0.2)

    def one(number: int) -> Sent:
        return order(number, failure=failed("shop.Odd" if number % 2 else "shop.Even"))

    await put(connection, letters, map(one, range(300)))
    odd = LetterFilter(errors=("Odd",))
    done = await replay_dead_letters(connection, letters, odd, rate=200)
    assert (done.waiting, done.replayed) == (300, 150)
    assert await ids_in(connection, queue) == numbered(*range(1, 300, 2))
    assert await ids_in(connection, letters) == numbered(*range(0, 300, 2))


async def test_letters_that_come_in_meanwhile_are_left_alone(
    connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, map(order, range(5)))
    async with taking(connection, letters, to_remove=True) as held:
        assert held.waiting == 5
    replay = asyncio.create_task(replay_dead_letters(connection, letters, rate=20))

    async def begun() -> bool:
        return bool(await count_messages(connection, queue))

    await eventually(begun)
    await put(connection, letters, [order(99)])
    assert (await replay).replayed == 5
    assert await ids_in(connection, letters) == ["id-99"]


async def test_a_reader_that_goes_away_hands_all_back(
    connection: Connection, letters: str, take: Take
) -> None:
    await put(connection, letters, map(order, range(100)))
    reading = read_dead_letters(connection, letters)
    seen: Letter = await anext(reading)
    assert seen.id == "id-0"
    await reading.aclose()
    assert [message.message_id for message in await take(letters)] == numbered(*range(100))
