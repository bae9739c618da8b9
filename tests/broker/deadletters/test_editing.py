"""One letter is repaired: a new event with its lineage, and the old one gone once that is there."""

from __future__ import annotations

import pytest

from evworker.broker import (
    Connection,
    Envelope,
    InvalidEventError,
    QueueNotFoundError,
    UndecodableError,
    count_messages,
    edit_dead_letter,
    edited_envelope,
)
from tests.broker.deadletters.letters import Sent, all_in, failed, ids_in, order, put
from tests.broker.events import OrderPlaced

STRUCTURED = Sent(
    id="e-1",
    body=b'{"specversion": "1.0", "id": "e-1", "source": "till", "type": "orders.placed", '
    b'"subject": "42", "dataversion": 2, "correlationid": "c-1", "data": {"order_id": 7}}',
    failure=failed(reason="invalid"),
    properties={"content_type": "application/cloudevents+json", "correlation_id": "c-1"},
)
BINARY = Sent(
    id="e-1",
    body=b'{"order_id": 7}',
    failure=failed(reason="invalid"),
    headers={"ce-id": "e-1", "ce-type": "orders.placed", "ce-source": "till", "tenant": "acme"},
)
BARE = Sent(id="e-1", body=b'{"order_id": 7}', failure=failed(reason="invalid"))


@pytest.mark.parametrize("sent", [STRUCTURED, BINARY, BARE], ids=["structured", "binary", "bare"])
async def test_the_repaired_event_is_a_new_one_that_knows_the_old(
    sent: Sent, connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, [order(0), sent, order(2)])
    _, letter, _ = await all_in(connection, letters)
    envelope = edited_envelope(letter, b'{\n "order_id": "7"\n}', OrderPlaced)
    assert await edit_dead_letter(connection, letters, letter, envelope)
    assert await ids_in(connection, letters) == ["id-0", "id-2"]
    (copy,) = await all_in(connection, queue)
    assert copy.id == copy.properties.message_id == envelope.id != "e-1"
    assert (copy.edit_of, copy.replays, copy.topic) == ("e-1", 1, "orders.placed")
    assert copy.history[0].reason == "invalid"
    assert copy.envelope is not None
    assert copy.envelope.value() == {"order_id": "7"}
    assert copy.envelope.correlation_id == (letter.envelope and letter.envelope.correlation_id)
    assert not [name for name in copy.headers if name.startswith("ce-")]
    if sent is STRUCTURED:
        assert (copy.envelope.key, copy.envelope.version) == ("42", 2)
        assert copy.properties.correlation_id == "c-1"
    if sent is BINARY:
        assert copy.headers["tenant"] == "acme"


async def test_what_is_not_valid_names_the_field(connection: Connection, letters: str) -> None:
    await put(connection, letters, [order(1)])
    (letter,) = await all_in(connection, letters)
    with pytest.raises(InvalidEventError, match=r"Expected `str`, got `int` - at `\$.order_id`"):
        edited_envelope(letter, b'{"order_id": 1}', OrderPlaced)
    with pytest.raises(UndecodableError, match="not JSON"):
        edited_envelope(letter, b'{"order_id": ')


async def test_bytes_that_were_no_event_can_become_one(
    connection: Connection, queue: str, letters: str
) -> None:
    broken = Sent(
        id="b", body=b'{"order_id": "1",}', failure=failed(reason="undecodable", error_type=None)
    )
    await put(connection, letters, [broken])
    (letter,) = await all_in(connection, letters)
    assert letter.envelope is None
    with pytest.raises(UndecodableError):
        edited_envelope(letter, letter.body)
    envelope = edited_envelope(letter, b'{"order_id": "1"}', OrderPlaced)
    assert await edit_dead_letter(connection, letters, letter, envelope)
    (copy,) = await all_in(connection, queue)
    assert (copy.topic, copy.edit_of) == ("orders.placed", "b")
    assert isinstance(copy.envelope, Envelope)


async def test_a_letter_that_has_gone_is_left_alone(
    connection: Connection, queue: str, letters: str
) -> None:
    await put(connection, letters, [order(1), order(2)])
    first, second = await all_in(connection, letters)
    envelope = edited_envelope(first, b"{}")
    assert await edit_dead_letter(connection, letters, first, envelope)
    assert not await edit_dead_letter(connection, letters, first, envelope)
    assert await ids_in(connection, letters) == ["id-2"]
    assert await count_messages(connection, queue) == 1
    with pytest.raises(QueueNotFoundError):
        await edit_dead_letter(connection, letters, second, envelope, to=f"{queue}.none")
    assert await ids_in(connection, letters) == ["id-2"]
