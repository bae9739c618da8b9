"""Letters as lines and back: byte for byte, and none removed before it is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aio_pika.abc import AbstractChannel

from evworker.broker import (
    BrokerError,
    Connection,
    Letter,
    LetterFilter,
    Publisher,
    QueueNotFoundError,
    count_messages,
    export_dead_letters,
    import_dead_letters,
    purge_dead_letters,
    replay_dead_letters,
)
from evworker.broker.headers import kept_headers
from tests.broker.deadletters.letters import AT, Sent, all_in, failed, ids_in, order, put
from tests.waiting import eventually

STRANGE: dict[str, Any] = {
    "text": "café \u2028",
    "bytes": bytearray(b"\xff\x00"),
    "number": 2**40,
    "yes": True,
    "none": None,
    "at": AT,
    "table": {"$bytes": "no", "list": [1, "a", {"b": bytearray(b"\x01")}]},
}


def told(letter: Letter) -> dict[str, Any]:
    """All that a letter is, but for what the broker counts on it."""
    names = [name for name in letter.properties.attributes() if name != "headers"]
    return {
        "body": letter.body,
        "failure": letter.failure,
        "headers": kept_headers(letter.headers),
        **{name: getattr(letter.properties, name) for name in names},
    }


async def lines_of(*lines: bytes) -> AsyncIterator[tuple[int, bytes | None]]:
    for number, line in enumerate(lines, 1):
        yield number, line


async def test_what_was_exported_comes_back_as_it_was(
    connection: Connection, queue: str, letters: str
) -> None:
    sent = [
        order(1, headers={"tenant": "acme"}, properties={"priority": 4, "app_id": "till"}),
        Sent(id="bytes", body=bytes(range(256)), failure=failed(reason="undecodable")),
        Sent(id="strange", body=b'"\\u0000"', headers=STRANGE),
        Sent(id="empty", body=b"", properties={"content_type": "text/plain", "timestamp": AT}),
    ]
    await put(connection, letters, sent)
    before = await all_in(connection, letters)
    written: list[bytes] = []
    exported = await export_dead_letters(connection, letters, written.append)
    assert (exported.letters, exported.removed) == (4, 0)
    assert await ids_in(connection, letters) == ["id-1", "bytes", "strange", "empty"]
    assert await purge_dead_letters(connection, letters) == 4

    lines = b"".join(written).splitlines()
    assert all(json.loads(line)["format"] == "evworker.letter/1" for line in lines)
    imported = await import_dead_letters(connection, letters, lines_of(*lines))
    assert (imported.letters, imported.refused) == (4, 0)
    after = await all_in(connection, letters)
    assert [told(letter) for letter in after] == [told(letter) for letter in before]
    # And to the last byte on the way back to work.
    await replay_dead_letters(connection, letters)
    assert [letter.body for letter in await all_in(connection, queue)] == [
        letter.body for letter in before
    ]


async def test_a_crash_is_remembered_without_the_brokers_headers(
    publisher: Publisher,
    onlooker: AbstractChannel,
    connection: Connection,
    exchange: str,
    queue: str,
    letters: str,
) -> None:
    plain = await onlooker.get_queue(queue)
    channel = await connection.channel(confirms=True)
    await channel.basic_publish(b"\xff", exchange=exchange, routing_key="orders.placed")
    await channel.close()

    async def killed() -> bool:
        message = await plain.get(fail=False)
        if message is not None:
            await message.reject(requeue=True)
        return bool(await count_messages(connection, letters))

    await eventually(killed)
    (before,) = await all_in(connection, letters)
    written: list[bytes] = []
    await export_dead_letters(connection, letters, written.append, remove=True)
    assert await count_messages(connection, letters) == 0
    await import_dead_letters(connection, letters, lines_of(*written))
    (after,) = await all_in(connection, letters)
    assert after.failure == before.failure
    assert after.failure.reason == "crashed"
    assert not [name for name in after.headers if name.startswith("x-")]


async def test_the_unrouted_keep_their_topic(
    publisher: Publisher, connection: Connection, exchange: str
) -> None:
    unrouted = f"{exchange}.unrouted"
    channel = await connection.channel(confirms=True)
    await channel.basic_publish(b"{}", exchange=exchange, routing_key="nobody.wants")
    await channel.close()

    async def kept() -> bool:
        return await count_messages(connection, unrouted) == 1

    await eventually(kept)
    written: list[bytes] = []
    await export_dead_letters(connection, unrouted, written.append, remove=True)
    await import_dead_letters(connection, unrouted, lines_of(*written))
    (letter,) = await all_in(connection, unrouted)
    assert (letter.topic, letter.failure.origin_exchange) == ("nobody.wants", exchange)


async def test_only_what_was_written_is_removed(connection: Connection, letters: str) -> None:
    await put(connection, letters, map(order, range(1_200)))
    written: list[bytes] = []

    def write(lines: bytes) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(lines)

    with pytest.raises(OSError, match="No space"):
        await export_dead_letters(connection, letters, write, remove=True)
    ids = [json.loads(line)["id"] for line in written[0].splitlines()]
    assert len(ids) >= 100
    assert [*ids, *await ids_in(connection, letters)] == [f"id-{n}" for n in range(1_200)]


async def test_filters_and_limits_hold(connection: Connection, letters: str) -> None:
    sent = [order(n, failure=failed("Odd" if n % 2 else "Even")) for n in range(10)]
    await put(connection, letters, sent)
    written: list[bytes] = []
    odd = LetterFilter(errors=("Odd",))
    await export_dead_letters(connection, letters, written.append, odd, limit=3, remove=True)
    assert [json.loads(line)["id"] for line in written[0].splitlines()] == ["id-1", "id-3", "id-5"]
    assert await ids_in(connection, letters) == [f"id-{n}" for n in (0, 2, 4, 6, 7, 8, 9)]
    imported = await import_dead_letters(
        connection, letters, lines_of(*written[0].splitlines()), limit=2
    )
    assert imported.letters == 2
    assert (await ids_in(connection, letters))[-2:] == ["id-1", "id-3"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not a letter: "),
        (b'{"a": 1}', "not a letter: Object missing required field `format`"),
        (b'{"format": "x", "queue": "q"}', "the format 'x' is not read"),
        (
            b'{"format": "evworker.letter/1", "queue": "q", "body_base64": "\xc3\xa9"}',
            "its body_base64 is not base64",
        ),
        (
            b'{"format": "evworker.letter/1", "queue": "q", "headers": {"a": {"$time": "x"}}}',
            "its properties can't be restored",
        ),
        (
            b'{"format": "evworker.letter/1", "queue": "q", "properties": {"priority": "high"}}',
            "AMQP can't carry its properties",
        ),
        (None, "too long"),
    ],
)
async def test_a_line_that_is_no_letter_is_refused_and_the_others_are_imported(
    line: bytes | None, why: str, connection: Connection, letters: str
) -> None:
    good = b'{"format": "evworker.letter/1", "queue": "q", "body": "1", "properties": {}}'
    refused: list[tuple[int, str]] = []

    async def lines() -> AsyncIterator[tuple[int, bytes | None]]:
        yield 1, good
        yield 2, line
        yield 3, good

    imported = await import_dead_letters(
        connection, letters, lines(), refuse=lambda number, text: refused.append((number, text))
    )
    assert (imported.letters, imported.refused, imported.last_line) == (2, 1, 3)
    assert [number for number, _ in refused] == [2]
    assert why in refused[0][1]
    assert [letter.body for letter in await all_in(connection, letters)] == [b"1", b"1"]


async def test_a_queue_that_is_not_there(connection: Connection, unique: str) -> None:
    with pytest.raises(QueueNotFoundError):
        await export_dead_letters(connection, f"{unique}.none.dlq", lambda _: None)
    with pytest.raises(QueueNotFoundError):
        await import_dead_letters(connection, f"{unique}.none.dlq", lines_of())
    with pytest.raises(BrokerError):
        await purge_dead_letters(connection, f"{unique}.none.dlq")
