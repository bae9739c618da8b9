"""Properties off the wire: the same as aiormq's, and an error in words for what is none."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame, header
from rich.pretty import pretty_repr

from evworker.broker import UndecodableError, tolerance
from evworker.broker.delivery import Delivery
from evworker.broker.fastlane.consuming import TappedDeliveries
from evworker.broker.fastlane.content_header import (
    decode_properties,
    encode_header,
    says_structured,
)
from evworker.broker.fastlane.frames import FrameError
from evworker.broker.fastlane.tap import Tap
from tests.unit.broker.fastlane.streams import exchanges, names, properties

tolerance.install()


def header_of(some: commands.Basic.Properties, size: int = 0) -> bytes:
    return frame.marshal(header.ContentHeader(0, size, some), 1)[7:-1]


def as_dict(some: commands.Basic.Properties) -> dict[str, object]:
    return {name: value for name, value in dict(some).items() if value is not None}


@given(properties)
def test_they_are_read_as_the_library_reads_them(some: commands.Basic.Properties) -> None:
    read = header.ContentHeader()
    read.unmarshal(header_of(some))
    decoded, why_not = decode_properties(header_of(some))
    assert why_not is None
    assert as_dict(decoded) == as_dict(read.properties)


@given(properties, st.integers(0, 2**40))
def test_they_are_written_as_the_library_writes_them(
    some: commands.Basic.Properties, size: int
) -> None:
    read = header.ContentHeader()
    read.unmarshal(encode_header(some, size))
    again = header.ContentHeader()
    again.unmarshal(header_of(some, size))
    assert read.body_size == size
    assert {k: v for k, v in as_dict(read.properties).items() if v not in ("", {})} == {
        k: v for k, v in as_dict(again.properties).items() if v not in ("", {})
    }


@given(st.binary(min_size=14, max_size=300))
def test_garbage_is_told_and_not_raised(data: bytes) -> None:
    read_or_told(data)


@given(properties, st.data())
def test_changed_ones_are_told_and_not_raised(
    some: commands.Basic.Properties, data: st.DataObject
) -> None:
    changed = bytearray(header_of(some))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(12, len(changed) - 1))] = data.draw(st.integers(0, 255))
    read_or_told(bytes(changed))


def read_or_told(data: bytes) -> None:
    says_structured(data)
    delivery = Delivery("q", NoChannel(), 1, False, b"\0\0", data, b"{}")
    assert delivery.header("evw-attempt") is None or delivery.headers
    with suppress(UndecodableError):
        delivery.envelope()


def test_one_that_its_own_channel_leads_to_is_collected() -> None:
    channel = NoChannel()
    channel.waiting = [Delivery("q", channel, 1, False, b"\0\0", bytes(14), b"{}")]
    left = weakref.ref(channel)
    del channel
    gc.collect()
    assert left() is None


def test_nothing_of_a_body_is_in_a_traceback() -> None:
    delivery = Delivery("q", NoChannel(), 1, False, b"\0\0", bytes(14), b"a password")
    assert "password" not in repr(delivery) + pretty_repr(delivery)


class NoChannel:
    is_live = False
    waiting: Sequence[Delivery] = ()

    def ack_at_once(self, tag: int) -> bool:
        return False

    async def ack(self, tag: int) -> bool:
        return False

    hand_back = reject = ack


# Deliveries


@given(names, exchanges, names, st.booleans())
def test_a_delivery_has_what_was_sent(
    consumer: str, exchange: str, key: str, redelivered: bool
) -> None:
    (delivery,) = delivered(commands.Basic.Deliver(consumer, 1, redelivered, exchange, key))
    assert (delivery.exchange, delivery.routing_key) == (exchange, key)
    assert delivery.redelivered is redelivered


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
def test_tags_that_do_not_count_up_from_1_are_an_error(tags: list[int]) -> None:
    methods = [raw_deliver(tag) for tag in tags]
    if tags == list(range(1, len(tags) + 1)):
        assert len(delivered(*methods)) == len(tags)
    else:
        with pytest.raises(FrameError, match=r"delivery \d+ behind \d+"):
            delivered(*methods)


@given(st.binary(max_size=40))
def test_a_delivery_of_garbage_is_an_error_or_can_be_read(arguments: bytes) -> None:
    try:
        (delivery,) = delivered(b"\x00\x3c\x00\x3c" + arguments)
    except FrameError:
        return
    assert isinstance(delivery.exchange + delivery.routing_key, str)


def raw_deliver(tag: int) -> bytes:
    return b"\x00\x3c\x00\x3c\x01c" + tag.to_bytes(8) + b"\x00\x01x\x01y"


def delivered(*methods: commands.Basic.Deliver | bytes) -> list[Delivery]:
    """What a tap makes of these deliveries; raises what ends the connection."""
    deliveries: list[Delivery] = []
    loop = asyncio.new_event_loop()
    try:
        reader = asyncio.StreamReader(loop=loop)
        tap = Tap(reader, loop)
        tap.expect_frames(131_072)
        TappedDeliveries(tap, 1, "q", deliveries.append)
        for method in methods:
            if isinstance(method, bytes):
                data = b"\x01\x00\x01" + len(method).to_bytes(4) + method + b"\xce"
            else:
                data = frame.marshal(method, 1)
            tap.data_received(data + frame.marshal(header.ContentHeader(0, 0), 1))
        error = reader.exception()
    finally:
        loop.close()
    if error is not None:
        raise error
    return deliveries
