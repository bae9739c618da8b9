"""The envelope: what is wrapped comes back, and what can't be read is told so."""

from __future__ import annotations

import base64
import enum
import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st

from evworker.broker import Envelope, Event, InvalidEventError, UndecodableError
from evworker.broker.envelope import CONTENT_TYPE, new_id

Properties = spec.Basic.Properties
STRUCTURED = Properties(content_type=CONTENT_TYPE)


class Currency(enum.Enum):
    EURO = "EUR"
    YEN = "JPY"


class Address(msgspec.Struct, frozen=True):
    street: str
    number: int | None = None


class Card(msgspec.Struct, frozen=True, tag="card"):
    digits: str


class Transfer(msgspec.Struct, frozen=True, tag="transfer"):
    iban: str


class OrderPlaced(Event, topic="orders.placed", version=2):
    order_id: UUID
    total: Decimal
    currency: Currency
    ship_to: Address
    paid_by: Card | Transfer
    placed_at: datetime
    due: date
    patience: timedelta
    lines: tuple[tuple[str, int], ...] = ()
    tags: frozenset[str] = frozenset()
    attachment: bytes = b""
    note: str | None = None


class Anything(Event, topic="any.thing"):
    value: Any = None


class Counted(Event, topic="things.counted"):
    count: int
    inner: Address | None = None


ORDER = OrderPlaced(
    order_id=UUID("01a208d3-2b96-7510-ada3-dd98db89bc25"),
    total=Decimal("1234567890.123456789012345678901"),
    currency=Currency.YEN,
    ship_to=Address("Straße", 7),
    paid_by=Transfer("DE00"),
    placed_at=datetime(2026, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2))),
    due=date(2026, 2, 28),
    patience=timedelta(minutes=5, milliseconds=1),
    lines=(("a", 1), ("b", 2)),
    tags=frozenset({"x"}),
    attachment=b"\x00\xff",
)


def through_the_wire(envelope: Envelope) -> Envelope:
    return Envelope.read(envelope.encode(), STRUCTURED, "another.key")


def document(**attributes: object) -> bytes:
    return json.dumps(
        {"specversion": "1.0", "id": "1", "source": "s", "type": "a.b"} | attributes
    ).encode()


# What is written


def test_every_type_of_field_survives() -> None:
    envelope = through_the_wire(Envelope.wrap(ORDER, source="shop"))
    assert envelope.decode(OrderPlaced) == ORDER


def test_an_envelope_comes_back_as_it_was() -> None:
    cause = Envelope(
        id="cause",
        source="web",
        topic="users.registered",
        time=datetime.now(UTC),
        data=b"{}",
        correlation_id="first",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate="rojo=1",
    )
    time = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    envelope = Envelope.wrap(
        ORDER, source="shop", id="id-1", key="customer-7", cause=cause, time=time
    )
    assert through_the_wire(envelope) == envelope
    assert (envelope.id, envelope.source, envelope.topic) == ("id-1", "shop", "orders.placed")
    assert (envelope.version, envelope.key, envelope.time) == (2, "customer-7", time)
    assert (envelope.correlation_id, envelope.causation_id) == ("first", "cause")
    assert (envelope.traceparent, envelope.tracestate) == (cause.traceparent, cause.tracestate)


def test_the_document_is_a_cloudevent_that_any_language_reads() -> None:
    envelope = Envelope.wrap(Counted(count=3), source="shop", id="i", key="k")
    written = json.loads(envelope.encode())
    assert written.pop("time").endswith("Z")
    assert written == {
        "specversion": "1.0",
        "id": "i",
        "source": "shop",
        "type": "things.counted",
        "subject": "k",
        "dataversion": 1,
        "correlationid": "i",
        "data": {"count": 3, "inner": None},
    }
    assert b"\n" not in envelope.encode()


def test_the_first_event_of_a_cascade_is_its_own_correlation() -> None:
    first = Envelope.wrap(Counted(count=1), source="s")
    second = Envelope.wrap(Counted(count=2), source="s", cause=first)
    third = Envelope.wrap(Counted(count=3), source="s", cause=second)
    assert [one.correlation_id for one in (first, second, third)] == [first.id] * 3
    assert [one.causation_id for one in (first, second, third)] == [None, first.id, second.id]


def test_decimals_are_written_as_text() -> None:
    assert json.loads(Envelope.wrap(ORDER, source="s").encode())["data"]["total"] == str(
        ORDER.total
    )


def nested(depth: int) -> object:
    value: object = None
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [object(), {1.5j}, "\ud800", 10**5_000, nested(50_000), {b"\xff": object()}],
    ids=["object", "complex", "surrogate", "integer", "deep", "key"],
)
def test_what_json_can_not_hold_is_an_invalid_event(value: object) -> None:
    with pytest.raises(InvalidEventError, match="Anything can't be written as JSON"):
        Envelope.wrap(Anything(value=value), source="s")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@given(json_values)
def test_any_event_that_json_can_hold_survives(value: object) -> None:
    event = Anything(value=value)
    envelope = through_the_wire(Envelope.wrap(event, source="s"))
    assert envelope.decode(Anything) == event
    assert envelope.value() == {"value": value}


@given(
    total=st.decimals(allow_nan=False, allow_infinity=False),
    placed_at=st.datetimes(timezones=st.just(UTC)),
    order_id=st.uuids(),
)
def test_any_decimal_datetime_and_uuid_survives(
    total: Decimal, placed_at: datetime, order_id: UUID
) -> None:
    event = msgspec.structs.replace(ORDER, total=total, placed_at=placed_at, order_id=order_id)
    assert through_the_wire(Envelope.wrap(event, source="s")).decode(OrderPlaced) == event


# What is read: structured


def test_a_foreign_document_needs_only_what_cloudevents_asks_for() -> None:
    body = b'{"specversion":"1.0","id":"7","source":"/x","type":"orders.placed"}'
    envelope = Envelope.read(body, STRUCTURED, "rk")
    assert (envelope.id, envelope.source, envelope.topic) == ("7", "/x", "orders.placed")
    assert (envelope.version, envelope.key, envelope.causation_id) == (None, None, None)
    assert envelope.correlation_id == "7"
    assert envelope.data == b"null"
    assert envelope.time.tzinfo is not None


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json; charset=utf-8",
        "Application/CloudEvents+JSON",
        "application/cloudevents+json;charset=UTF-8",
    ],
)
def test_the_content_type_is_read_as_http_reads_it(content_type: str) -> None:
    envelope = Envelope.read(document(data=1), Properties(content_type=content_type), "rk")
    assert envelope.data == b"1"


@pytest.mark.parametrize(
    ("written", "read"),
    [(3, 3), ("3", 3), ("v3", None), (None, None), ("9" * 5000, None), ("9" * 19, None)],
)
def test_a_version_is_read_where_it_is_a_number(written: object, read: int | None) -> None:
    envelope = Envelope.read(document(dataversion=written), STRUCTURED, "rk")
    assert envelope.version == read
    assert through_the_wire(envelope).version == read


def test_unknown_attributes_and_fields_are_ignored() -> None:
    body = document(data={"count": 1, "new": "field"}, partitionkey="p", extension={"a": 1})
    assert Envelope.read(body, STRUCTURED, "rk").decode(Counted) == Counted(count=1)


def test_data_base64_is_read() -> None:
    body = document(data_base64=base64.b64encode(b'{"count":5}').decode())
    assert Envelope.read(body, STRUCTURED, "rk").decode(Counted) == Counted(count=5)


def test_a_time_without_zone_is_taken_as_utc() -> None:
    envelope = Envelope.read(document(time="2026-01-02T03:04:05"), STRUCTURED, "rk")
    assert envelope.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


# What is read: binary


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:", "ce-", "ce_"])
def test_binary_mode_is_read_with_every_prefix(prefix: str) -> None:
    attributes = {
        "specversion": "1.0",
        "id": "7",
        "source": "/x",
        "type": "things.counted",
        "time": "2026-01-02T03:04:05Z",
        "subject": "k",
        "dataversion": "2",
        "correlationid": "c",
        "causationid": "b",
        "traceparent": "t",
    }
    headers: dict[str, Any] = {prefix + name: value for name, value in attributes.items()}
    headers |= {"other": 1, "x-death": []}
    properties = Properties(content_type="application/json", headers=headers, message_id="not me")
    envelope = Envelope.read(b'{"count":5}', properties, "rk")
    assert envelope == Envelope(
        id="7",
        source="/x",
        topic="things.counted",
        time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        data=b'{"count":5}',
        version=2,
        key="k",
        correlation_id="c",
        causation_id="b",
        traceparent="t",
    )


def test_in_binary_mode_the_body_is_the_data_whatever_the_headers_say() -> None:
    headers: dict[str, Any] = {
        "ce-id": "1",
        "ce-type": "a.b",
        "ce-data": "no",
        "ce-data_base64": "bm8=",
    }
    envelope = Envelope.read(b'{"count":5}', Properties(headers=headers), "rk")
    assert envelope.data == b'{"count":5}'


def test_a_timestamp_header_is_a_time() -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    headers: dict[str, Any] = {"ce-id": "1", "ce-type": "a.b", "ce-time": time}
    assert Envelope.read(b"{}", Properties(headers=headers), "rk").time == time


# What is read: bare JSON


def test_bare_json_takes_its_attributes_from_the_properties() -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    properties = Properties(
        message_id="m",
        message_type="things.counted",
        app_id="legacy",
        correlation_id="c",
        timestamp=time,
    )
    assert Envelope.read(b'{"count": 1}', properties, "rk") == Envelope(
        id="m",
        source="legacy",
        topic="things.counted",
        time=time,
        data=b'{"count": 1}',
        correlation_id="c",
    )


def test_bare_json_without_properties_is_known_by_its_routing_key() -> None:
    one = Envelope.read(b"[1]", Properties(), "legacy.key")
    other = Envelope.read(b"[1]", Properties(), "legacy.key")
    assert (one.topic, one.source, one.data) == ("legacy.key", "unknown", b"[1]")
    assert one.id != other.id
    assert one.correlation_id == one.id


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "application/json; charset=utf-8",
        "application/vnd.shop+json",
        "text/plain",
        "text/json",
        "application/octet-stream",
    ],
)
def test_bare_json_is_read_whatever_a_client_calls_it(content_type: str | None) -> None:
    assert Envelope.read(b"1", Properties(content_type=content_type), "rk").data == b"1"


# What can't be read

Case = tuple[bytes, Properties, str]

UNDECODABLE: dict[str, Case] = {
    "not UTF-8": (b'{"name":"\xff"}', Properties(), "not JSON"),
    "empty": (b"", Properties(), "not JSON"),
    "truncated": (b'{"name":', Properties(), "not JSON"),
    "truncated document": (document(data={"a": 1})[:-2], STRUCTURED, "not JSON"),
    "no JSON": (b"name=value", Properties(content_type="text/plain"), "not JSON"),
    "pickle": (b"\x80\x04N.", Properties(content_type="application/x-python-serialize"), "pytho"),
    "protobuf": (b"{}", Properties(content_type="application/protobuf"), "'application/protobuf'"),
    "compressed": (b"{}", Properties(content_encoding="gzip"), "encoded as 'gzip'"),
    "too deep": (b"[" * 100_000, Properties(), "not JSON"),
    "too deep inside": (
        b'{"specversion":"1.0","id":"1","type":"a","data":' + b"[" * 100_000,
        STRUCTURED,
        "not JSON",
    ),
    "a batch": (
        b"[]",
        Properties(content_type="application/cloudevents-batch+json"),
        "send 'application/cloudevents\\+json'",
    ),
    "a list": (b"[]", STRUCTURED, "not a CloudEvents document: Expected `object`"),
    "no id": (b'{"specversion":"1.0","type":"a"}', STRUCTURED, "missing required field `id`"),
    "no type": (b'{"specversion":"1.0","id":"1"}', STRUCTURED, "missing required field `type`"),
    "wrong specversion": (document(specversion="0.3"), STRUCTURED, "CloudEvents '0.3'"),
    "wrong time": (document(time="yesterday"), STRUCTURED, r"\$.time"),
    "no base64": (document(data_base64="*"), STRUCTURED, "not base64"),
    "no ASCII": (document(data_base64="é"), STRUCTURED, "not base64"),
    "base64 of no JSON": (document(data_base64="/w=="), STRUCTURED, "not JSON"),
    "binary, wrong time": (
        b"{}",
        Properties(headers={"ce-id": "1", "ce-type": "a", "ce-time": "yesterday"}),
        "CloudEvents headers",
    ),
    "binary, wrong specversion": (
        b"{}",
        Properties(headers={"ce-id": "1", "ce-type": "a", "ce-specversion": "2.0"}),
        "CloudEvents '2.0'",
    ),
    "binary, not JSON": (
        b"<xml/>",
        Properties(headers={"ce-id": "1", "ce-type": "a"}),
        "not JSON",
    ),
}


@pytest.mark.parametrize("case", UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_can_not_be_read_is_undecodable_and_says_why(case: Case) -> None:
    body, properties, reason = case
    with pytest.raises(UndecodableError, match=reason):
        Envelope.read(body, properties, "rk")


def test_data_that_is_not_utf_8_is_undecodable_at_the_latest_when_decoded() -> None:
    body = document(data={"street": "X"}).replace(b"X", b"\xff")

    class Moved(Event, topic="moved"):
        street: str

    envelope = Envelope.read(body, STRUCTURED, "rk")
    with pytest.raises(UndecodableError, match=r"the data of a\.b is not JSON"):
        envelope.decode(Moved)
    with pytest.raises(UndecodableError, match=r"the data of a\.b is not JSON"):
        envelope.value()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b'{"count":"many"}', r"Expected `int`, got `str` - at `\$.count`"),
        (b"{}", "missing required field `count`"),
        (b'{"count":1,"inner":{"street":5}}', r"at `\$.inner.street`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"count":1e400}', "range"),
    ],
)
def test_data_that_is_not_as_its_type_promises_is_invalid_and_names_the_field(
    data: bytes, what: str
) -> None:
    body = (
        b'{"specversion":"1.0","id":"1","type":"things.counted","dataversion":7,"data":%s}' % data
    )
    envelope = Envelope.read(body, STRUCTURED, "rk")
    with pytest.raises(InvalidEventError, match=what) as invalid:
        envelope.decode(Counted)
    assert "things.counted v7 is not a valid Counted" in str(invalid.value)


def read_or_undecodable(read: Callable[[], Envelope]) -> None:
    try:
        envelope = read()
    except UndecodableError:
        return
    try:
        envelope.value()
        envelope.decode(Counted)
    except (UndecodableError, InvalidEventError):
        return
    # What decodes can go on: into an outbox, into an edit of a dead letter.
    assert Envelope.read(envelope.encode(), STRUCTURED, "rk").id == envelope.id


almost_documents = st.fixed_dictionaries(
    {},
    optional={
        name: json_values | st.text()
        for name in ("specversion", "id", "source", "type", "time", "dataversion", "data_base64")
    }
    | {"data": json_values},
)
content_types = st.sampled_from([None, "application/json", CONTENT_TYPE, "text/plain"]) | st.text()


@given(body=st.binary(), content_type=content_types)
def test_any_bytes_are_an_envelope_or_undecodable(body: bytes, content_type: str | None) -> None:
    read_or_undecodable(lambda: Envelope.read(body, Properties(content_type=content_type), "rk"))
    read_or_undecodable(lambda: Envelope.read(body, STRUCTURED, "rk"))
    read_or_undecodable(lambda: Envelope.parse(body))
    read_or_undecodable(lambda: Envelope.parse(body, topic="a.b"))


@given(almost_documents)
def test_almost_any_document_is_an_envelope_or_undecodable(document: dict[str, object]) -> None:
    body = json.dumps({"specversion": "1.0", "id": "1", "type": "a", **document}).encode()
    read_or_undecodable(lambda: Envelope.read(body, STRUCTURED, "rk"))
    read_or_undecodable(lambda: Envelope.parse(body))


@given(
    st.dictionaries(
        st.sampled_from(["ce-time", "ce-dataversion", "ce-source", "ce-data", "cloudEvents_id"])
        | st.text().map("ce-".__add__),
        st.none() | st.text() | st.integers() | st.binary() | st.datetimes() | st.lists(st.text()),
    )
)
def test_any_headers_make_an_envelope_or_undecodable(headers: dict[str, Any]) -> None:
    properties = Properties(headers={"ce-id": "1", "ce-type": "a"} | headers)
    read_or_undecodable(lambda: Envelope.read(b'{"count":1}', properties, "rk"))


# What is written by hand


def test_parse_reads_a_line_of_which_only_type_and_data_are_there() -> None:
    envelope = Envelope.parse(b'{"type":"orders.placed","data":{"count":1},"subject":"k"}\n')
    assert (envelope.topic, envelope.data, envelope.key) == ("orders.placed", b'{"count":1}', "k")
    assert UUID(envelope.id).version == 7
    assert envelope.source == "unknown"


def test_parse_reads_what_encode_wrote() -> None:
    envelope = Envelope.wrap(ORDER, source="shop", key="k")
    assert Envelope.parse(envelope.encode()) == envelope


def test_parse_with_a_topic_reads_bare_data() -> None:
    envelope = Envelope.parse(b'{"count":1}', topic="things.counted")
    assert envelope.decode(Counted) == Counted(count=1)
    assert envelope.correlation_id == envelope.id


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{}", "'type' \\(the topic\\) and 'data'"),
        (b'{"type":"a.b"}', "'type' \\(the topic\\) and 'data'"),
        (b'{"data":1}', "'type' \\(the topic\\) and 'data'"),
        (b'{"type":"a..b","data":1}', "an empty word"),
        (b'{"type":"a.*","data":1}', "a topic has no wildcards"),
        (b'{"type":"a.b","data":"\xff"}', "not JSON"),
        (b'{"type":"a.b","data":1,"specversion":"2"}', "CloudEvents '2'"),
    ],
)
def test_parse_refuses_a_line_that_is_no_envelope(line: bytes, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        Envelope.parse(line)


def test_parse_with_a_topic_refuses_what_is_no_json() -> None:
    with pytest.raises(UndecodableError, match="not JSON"):
        Envelope.parse(b'{"count":', topic="things.counted")


# Ids


def test_ids_are_version_7_of_the_rfc_variant() -> None:
    for _ in range(100):
        id = UUID(new_id())
        assert id.version == 7
        assert id.variant == "specified in RFC 4122"


def test_ids_of_later_milliseconds_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = (moment * 1_000_000 for moment in range(1_767_323_045_678, 1_767_323_045_778))
    monkeypatch.setattr("evworker.broker.envelope.clock.time_ns", lambda: next(moments))
    ids = [new_id() for _ in range(100)]
    assert ids == sorted(ids)
    assert UUID(ids[0]).int >> 80 == 1_767_323_045_678


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"{}", Properties(message_id="m-1")),
        (b"{}", Properties(headers={"ce-id": "m-1", "ce-type": "a.b", "ce-specversion": "1.0"})),
        (b'{"specversion":"1.0","id":"m-1","source":"x","type":"a.b"}', STRUCTURED),
        (
            b'{"specversion":"1.0","id":"","source":"x","type":"a.b"}',
            Properties(content_type=CONTENT_TYPE, message_id="m-1"),
        ),
    ],
    ids=["bare", "binary", "structured", "structured without"],
)
def test_an_id_that_came_with_the_message_lasts(body: bytes, properties: Properties) -> None:
    read = [Envelope.read(body, properties, "a.b") for _ in range(2)]
    assert {envelope.id for envelope in read} == {"m-1"}
    assert all(envelope.has_lasting_id for envelope in read)


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b"{}", Properties(message_id="")),
        (
            b'{"specversion":"1.0","id":"","source":"x","type":"a.b"}',
            Properties(content_type=CONTENT_TYPE, message_id=""),
        ),
    ],
    ids=["bare", "structured"],
)
def test_an_id_that_was_made_up_says_so(body: bytes, properties: Properties) -> None:
    read = [Envelope.read(body, properties, "a.b") for _ in range(2)]
    assert len({envelope.id for envelope in read}) == 2
    assert not any(envelope.has_lasting_id for envelope in read)


def test_ids_are_unique() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_ids_are_unique_across_a_fork() -> None:
    new_id()  # which leaves random digits for others
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as written:
        of_child = written.read()
    assert of_child[-17:] != new_id()[-17:]  # the random digits; the others are the time
