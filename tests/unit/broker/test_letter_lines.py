"""Letters as lines: whatever AMQP can carry comes back from a line as it went in."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, decode, encode

from evworker.broker.deadletters.letter import Letter
from evworker.broker.deadletters.transfer import from_line, to_line
from evworker.broker.failure import Failure
from evworker.broker.headers import kept_headers

# Seconds, before 2106: larger timestamps are read as milliseconds by the library underneath.
times = st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
decimals = st.builds(
    lambda number, places: Decimal(number).scaleb(-places),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 20),
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
short_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.sampled_from(["$bytes", "$time", "$decimal", "$float", "$table", "$"]),
).filter(lambda name: not name.startswith(("evw-", "x-")) and name not in {"CC", "BCC"})
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    texts,
    st.binary().map(bytearray),
    times,
    decimals,
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
headers = st.dictionaries(names, values, max_size=5)
properties = st.fixed_dictionaries(
    {"message_id": short_texts, "delivery_mode": st.just(2)},
    optional={
        "content_type": short_texts,
        "content_encoding": short_texts,
        "priority": st.integers(0, 255),
        "correlation_id": short_texts,
        "reply_to": short_texts,
        "timestamp": times,
        "message_type": short_texts,
        "app_id": short_texts,
    },
)


def received(body: bytes, properties: dict[str, Any], headers: dict[str, Any]) -> Letter:
    """The letter as it is read off the wire."""
    sent = commands.Basic.Properties(**properties)
    sent.headers = dict(decode.field_table(encode.field_table(headers))[1])
    return Letter(
        position=1,
        id=sent.message_id,
        topic=None,
        envelope=None,
        body=body,
        content_type=sent.content_type,
        headers=sent.headers,
        failure=Failure.from_headers(sent.headers),
        properties=sent,
    )


def on_the_wire(properties: spec.Basic.Properties) -> tuple[bytes, dict[str, Any]]:
    table = encode.field_table(properties.headers or {})
    named = {name: getattr(properties, name) for name in properties.attributes()}
    return table, {name: value for name, value in named.items() if name != "headers"}


@given(body=st.binary() | texts.map(str.encode), properties=properties, headers=headers)
def test_a_line_restores_body_properties_and_headers(
    body: bytes, properties: dict[str, Any], headers: dict[str, Any]
) -> None:
    letter = received(body, properties, headers)
    line = to_line(letter, "billing.charge.dlq")
    assert line.count(b"\n") == 1
    restored_body, restored = from_line(line)
    assert restored_body == body
    table, named = on_the_wire(restored)
    assert decode.field_table(table)[1] == kept_headers(letter.headers)
    assert named == on_the_wire(letter.properties)[1]
    # And once more: what came back is exported in the same words.
    again = received(restored_body, named, dict(decode.field_table(table)[1]))
    assert to_line(again, "billing.charge.dlq") == line
