"""`evworker publish`, by what arrives on the broker."""

from __future__ import annotations

import asyncio
import json
import re
import signal

import pytest

from evworker.broker import Envelope
from tests.cli.command import Command, line_with
from tests.cli.conftest import Exchange

ORDER = '{"order_id": "42", "total": 3}'


async def test_one_event(evworker: Command, exchange: Exchange) -> None:
    result = await evworker("publish", "orders.placed", ORDER)
    [envelope] = await exchange.published()
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{envelope.id}  orders.placed\n"
    assert envelope.value() == json.loads(ORDER)
    assert envelope.source == "evworker/publish"


async def test_one_event_as_json(evworker: Command, exchange: Exchange) -> None:
    result = await evworker("publish", "orders.placed", "--json", "--key", "k", "--id", "7")
    [envelope] = await exchange.published()
    assert result.json == {"id": "7", "topic": "orders.placed"}
    assert (envelope.id, envelope.key, envelope.data) == ("7", "k", b"{}")


@pytest.mark.parametrize("argument", ["@order.json", "-"])
async def test_data_from_a_file_or_stdin(
    argument: str, evworker: Command, exchange: Exchange
) -> None:
    file = evworker.write("order.json", '\ufeff{\n  "price": 1.10000000000000000001\n}\n')
    stdin = file.read_bytes() if argument == "-" else b""
    result = await evworker("publish", "orders.placed", argument, stdin=stdin)
    [envelope] = await exchange.published()
    assert result.code == 0
    assert envelope.data == b'{"price":1.10000000000000000001}'


async def test_a_known_type_gives_its_version(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    await evworker("publish", "orders.placed", ORDER)
    [envelope] = await exchange.published()
    assert envelope.version == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"order_id": 42}', "Expected `str`, got `int` - at `$.order_id`; nothing was published"),
        ('{"total": 1}', "missing required field `order_id`; nothing was published"),
        ('{"order_id": "42", 1}', "DATA is not JSON: column 20: "),
        ('{"order_id": "42', "DATA is not JSON: column 14: unterminated string"),
        ("", "DATA is empty"),
        ("@nosuch.json", "can't read 'nosuch.json': No such file or directory"),
        ("@latin.json", "latin.json is not UTF-8: byte 0xe9 at line 2, column 6"),
        ("[" * 100_000, "DATA is nested too deeply"),
    ],
)
async def test_wrong_data_is_one_line_and_nothing_is_sent(
    data: str, said: str, evworker: Command, exchange: Exchange, shop: str
) -> None:
    (evworker.folder / "latin.json").write_bytes(b'{"order_id":\n "caf\xe9"}')
    result = await evworker("publish", "orders.placed", data)
    assert said in result.error
    assert (result.code, result.out) == (2, "")
    assert await exchange.published() == []


async def test_a_topic_without_a_type_is_noted(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    result = await evworker("publish", "orders.plced", "{}")
    assert result.code == 0
    assert "no event type of shop has the topic 'orders.plced'" in result.err
    assert "did you mean 'orders.placed'?" in result.err


async def test_a_priority_is_sent(evworker: Command, exchange: Exchange) -> None:
    await evworker("publish", "orders.placed", "--priority", "7")
    channel = await exchange.connection.channel()
    message = await channel.basic_get(f"{exchange.name}.copy", no_ack=True)
    assert message.header.properties.priority == 7
    await channel.close()


async def test_many_have_ids_of_their_own(evworker: Command, exchange: Exchange) -> None:
    result = await evworker("publish", "orders.placed", ORDER, "--count", "1200", "--json")
    envelopes = await exchange.published()
    assert len({envelope.id for envelope in envelopes}) == len(envelopes) == 1200
    assert result.json["published"] == 1200
    assert result.json["refused"] == 0


async def test_a_rate_is_not_exceeded(evworker: Command, exchange: Exchange) -> None:
    result = await evworker("publish", "a.b", "--count", "11", "--rate", "50", "--json")
    assert result.json["seconds"] >= 0.2
    assert len(await exchange.published()) == 11


async def test_lines_of_data(evworker: Command, exchange: Exchange) -> None:
    evworker.write("lines", '{"n": 1}\n\n{"n": 2}\r\n{"n": 3}')
    result = await evworker("publish", "numbers.counted", "--ndjson", "lines", "--key", "k")
    assert result.code == 0
    assert re.fullmatch(r"published 3 events in \d+\.\d s, [\d,]+ a second\n", result.out)
    envelopes = await exchange.published()
    assert sorted(envelope.value()["n"] for envelope in envelopes) == [1, 2, 3]
    assert {envelope.key for envelope in envelopes} == {"k"}


async def test_lines_that_are_no_events_are_told_and_the_others_published(
    evworker: Command, exchange: Exchange, shop: str
) -> None:
    lines = b"\n".join(
        [
            b'{"id": "1", "source": "till", "type": "orders.placed", "data": {"order_id": "1"}}',
            b'{"type": "orders.placed", "data": {"order_id": 2}}',
            b"nonsense",
            b'{"type": "orders.placed", "data": {"order_id": "caf\xe9"}}',
            b'{"type": "orders..placed", "data": 1}',
            b'{"data": 1}',
            b'{"type": "anything.else", "data": 1}',
        ]
    )
    result = await evworker("publish", "--ndjson", "-", stdin=lines)
    told = result.err.splitlines()
    assert result.code == 1
    assert result.out.startswith("published 2 events in ")
    for line, said in zip(
        told,
        [
            "line 2: orders.placed is not a valid OrderPlaced: Expected `str`, got `int`",
            "line 3: not JSON: column 1: ",
            "line 4: not UTF-8: byte 0xe9 at column 52",
            "line 5: the topic 'orders..placed' has an empty word",
            "line 6: an envelope needs at least 'type'",
            "error: 5 lines refused",
        ],
        strict=True,
    ):
        assert line.startswith(said)
    assert {envelope.topic for envelope in await exchange.published()} == {
        "orders.placed",
        "anything.else",
    }


async def test_a_body_that_the_broker_does_not_take_is_told(
    evworker: Command, exchange: Exchange
) -> None:
    size = exchange.connection.version.max_message_bytes
    lines = b'{"n": 1}\n{"n": "%s"}\n{"n": 3}\n' % (b"x" * size)
    result = await evworker("publish", "numbers.counted", "--ndjson", "-", stdin=lines)
    assert result.code == 1
    assert result.err.startswith("line 2: ")
    assert sorted(e.value()["n"] for e in await exchange.published()) == [1, 3]


async def test_a_stream_that_can_not_be_read(evworker: Command, exchange: Exchange) -> None:
    assert (await evworker("publish", "--ndjson", "nosuch")).error == (
        "can't read 'nosuch': No such file or directory"
    )
    result = await evworker("publish", "--ndjson", ".")
    assert (result.code, result.error) == (2, "can't read '.': it is a directory")


async def test_an_endless_pipe_ends_with_a_true_number(
    evworker: Command, exchange: Exchange
) -> None:
    async with evworker.started("publish", "a.b", "--ndjson", "-") as process:
        assert process.stdin is not None
        for _ in range(3000):
            process.stdin.write(b'{"n": 1}\n')
        await process.stdin.drain()
        published: list[Envelope] = []
        async with asyncio.timeout(30):
            while not published:
                published = await exchange.published()
        process.send_signal(signal.SIGINT)
        line = await line_with(process.stderr, "interrupted")
        assert await process.wait() == 130
    said = re.search(r"interrupted; ([\d,]+) events? published", line)
    assert said is not None
    published += await exchange.published()
    assert int(said[1].replace(",", "")) == len(published)
