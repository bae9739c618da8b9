"""What a broker may send, frame by frame, with what a reader of it has to make of each frame."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat

CONTENT = commands.Basic.Deliver.index
TAPPED, ALSO_TAPPED, UNTAPPED = 1, 3, 2
CHANNELS = (TAPPED, ALSO_TAPPED, UNTAPPED)

Happening = tuple[Any, ...]
"""Its channel and "content", method, header, body; or "method", index, arguments; or "closed"."""


@dataclass(frozen=True)
class Sent:
    """A frame, and what its channel's tap has to do about it as long as there is one."""

    channel: int
    data: bytes
    taken: bool = False
    told: Happening | None = None
    ends: bool = False


names = st.text(st.characters(codec="utf-8"), max_size=20)
exchanges = st.text("abc-_.:123", max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, width=32)
    | st.text(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.decimals(-1000, 1000, places=2).map(Decimal)
    | st.integers(0, 2**31).map(lambda at: datetime.fromtimestamp(at, UTC))
)
tables = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)
properties = st.builds(
    commands.Basic.Properties,
    content_type=st.none() | st.just("application/cloudevents+json; charset=utf-8") | names,
    content_encoding=st.none() | names,
    headers=st.none() | tables,
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | names,
    reply_to=st.none() | names,
    expiration=st.none() | names,
    message_id=st.none() | names,
    timestamp=st.none() | st.integers(0, 2**31).map(lambda at: datetime.fromtimestamp(at, UTC)),
    message_type=st.none() | names,
    user_id=st.none() | names,
    app_id=st.none() | names,
)
bodies = st.lists(st.binary(max_size=40), max_size=5)


def marshalled(channel: int, *values: Any) -> list[bytes]:
    return [frame.marshal(value, channel) for value in values]


def message(
    channel: int, method: Any, with_properties: commands.Basic.Properties, pieces: list[bytes]
) -> list[bytes]:
    size = sum(map(len, pieces))
    parts = map(body.ContentBody, pieces if size else [])
    return marshalled(channel, method, header.ContentHeader(0, size, with_properties), *parts)


@st.composite
def deliveries(draw: st.DrawFn, channel: int) -> list[Sent]:
    method = commands.Basic.Deliver(
        consumer_tag=draw(names),
        delivery_tag=draw(st.integers(0, 2**63 - 1)),
        redelivered=draw(st.booleans()),
        exchange=draw(exchanges),
        routing_key=draw(names),
    )
    pieces = draw(bodies)
    frames = message(channel, method, draw(properties), pieces)
    told = (channel, "content", frames[0][11:-1], frames[1][7:-1], b"".join(pieces))
    # The whole body may be there before its last frames, which are empty then.
    last = next(
        (n for n in range(2, len(frames) + 1) if b"".join(pieces[: n - 2]) == told[4]), len(frames)
    )
    return [
        Sent(channel, data, taken=True, told=told if number == last else None)
        for number, data in enumerate(frames[:last], 1)
    ]


@st.composite
def other_frames(draw: st.DrawFn, channel: int) -> list[Sent]:
    """What nobody takes, among it contents of other methods."""
    which = draw(
        st.sampled_from(
            [
                commands.Basic.Cancel(consumer_tag="c"),
                commands.Basic.ConsumeOk(consumer_tag="c"),
                commands.Basic.QosOk(),
                commands.Channel.Flow(active=True),
                commands.Basic.Return(312, "NO_ROUTE", "x", "y"),
                commands.Basic.GetOk(1, False, "x", "y", 5),
            ]
        )
    )
    if which.name in ("Basic.Return", "Basic.GetOk"):
        frames = message(channel, which, draw(properties), draw(bodies))
    else:
        frames = marshalled(channel, which)
    return [Sent(channel, data) for data in frames]


@st.composite
def confirms(draw: st.DrawFn, channel: int) -> list[Sent]:
    acked = commands.Basic.Ack(draw(st.integers(0, 2**63 - 1)), draw(st.booleans()))
    (data,) = marshalled(channel, acked)
    told = (channel, "method", commands.Basic.Ack.index, data[11:-1])
    return [Sent(channel, data, taken=True, told=told)]


@st.composite
def ends(draw: st.DrawFn, channel: int) -> list[Sent]:
    """The channel's end, perhaps in the middle of a message."""
    begun = draw(st.just([]) | deliveries(channel))
    cut = draw(st.integers(0, max(0, len(begun) - 1)))
    method = draw(
        st.sampled_from(
            [commands.Channel.Close(404, "NOT_FOUND", 60, 20), commands.Channel.CloseOk()]
        )
    )
    (data,) = marshalled(channel, method)
    return [*begun[:cut], Sent(channel, data, told=(channel, "closed"), ends=True)]


_low_on_memory = commands.Connection.Blocked("low on memory")
connection_frames = st.sampled_from(
    [
        [Sent(0, frame.marshal(heartbeat.Heartbeat(), 0))],
        [Sent(0, frame.marshal(_low_on_memory, 0))],
        [Sent(0, frame.marshal(commands.Connection.Unblocked(), 0))],
    ]
)


def of_channel(channel: int) -> st.SearchStrategy[list[Sent]]:
    living = deliveries(channel) | other_frames(channel) | confirms(channel)
    groups = st.lists(st.one_of(living, living, living, ends(channel)), max_size=6)
    return groups.map(lambda some: [sent for group in some for sent in group])


@st.composite
def streams(draw: st.DrawFn) -> list[Sent]:
    """Frames of several channels and of the connection, in between each other."""
    lines = [draw(of_channel(channel)) for channel in CHANNELS]
    control = draw(st.lists(connection_frames, max_size=4))
    lines.append([sent for group in control for sent in group])
    order = draw(st.permutations([n for n, line in enumerate(lines) for _ in line]))
    each = [iter(line) for line in lines]
    return [next(each[number]) for number in order]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


cuts = st.lists(st.integers(0, 2**31), max_size=20)
