"""Settlements: against a model of what a broker has out, with a real tap in between.

RabbitMQ closes a channel on which somebody settles what is not out
(https://www.rabbitmq.com/docs/confirms#consumer-acknowledgements-api-elements).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pamqp import commands, frame, header

from evworker.broker.delivery import Delivery
from evworker.broker.fastlane.consuming import TappedDeliveries
from evworker.broker.fastlane.settling import Settling
from evworker.broker.fastlane.tap import Tap

CHANNEL = 7


class Socket(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


def frames_in(data: bytes) -> list[Any]:
    frames = []
    while data:
        used, channel, value = frame.unmarshal(data)
        assert channel == CHANNEL
        frames.append(value)
        data = data[used:]
    return frames


def done(settlement: Coroutine[Any, Any, bool]) -> bool:
    """The result of what must not wait for anything."""
    try:
        settlement.send(None)
    except StopIteration as stop:
        result: bool = stop.value
        return result
    raise AssertionError("a settlement waited")


class Broker(RuleBasedStateMachine):
    """One channel with subscriptions on it, seen from its two ends."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.socket = Socket()
        self.tap = Tap(asyncio.StreamReader(loop=self.loop), self.loop)
        self.tap.connection_made(self.socket)
        self.tap.expect_frames(131_072)
        self.held: list[Delivery] = []
        TappedDeliveries(self.tap, CHANNEL, "q", self.receive)
        self.tags = 0
        self.out: set[int] = set()
        self.finished: dict[int, type] = {}
        """How each was settled that is still out for all that the broker knows."""
        self.is_open = True
        self.is_stalled = False

    def teardown(self) -> None:
        self.loop.close()

    def receive(self, delivery: Delivery) -> None:
        self.held.append(delivery)

    # The broker

    @precondition(lambda self: self.is_open)
    @rule(count=st.integers(1, 40), subscription=st.sampled_from(["one", "another"]))
    def deliver(self, count: int, subscription: str) -> None:
        for _ in range(count):
            self.tags += 1
            self.out.add(self.tags)
            deliver = commands.Basic.Deliver(subscription, self.tags, False, "x", "y")
            self.tap.data_received(
                frame.marshal(deliver, CHANNEL) + frame.marshal(header.ContentHeader(0, 0), CHANNEL)
            )

    def read(self) -> None:
        written, self.socket.written = bytes(self.socket.written), bytearray()
        assert self.is_open or not written, "nothing behind the channel's end"
        for settlement in frames_in(written):
            self.settle(settlement)

    def settle(self, settlement: commands.Basic.Ack | commands.Basic.Nack) -> None:
        tag = settlement.delivery_tag
        assert tag in self.out, "this would close the channel"
        covered = {tag}
        if isinstance(settlement, commands.Basic.Ack) and settlement.multiple:
            covered = {other for other in self.out if other <= tag}
        for each in covered:
            assert self.finished.pop(each, None) is type(settlement), "an ack ahead of its delivery"
        self.out -= covered

    # Whoever consumes

    @precondition(lambda self: self.held)
    @rule(
        place=st.floats(0, 1),
        count=st.integers(1, 30),
        how=st.sampled_from(["ack"] * 6 + ["hand_back", "reject"]),
    )
    def finish(self, place: float, count: int, how: str) -> None:
        start = int(place * (len(self.held) - 1))
        some = self.held[start : start + count]
        self.held = self.held[:start] + self.held[start + count :]
        kinds = {
            "ack": commands.Basic.Ack,
            "hand_back": commands.Basic.Nack,
            "reject": commands.Basic.Reject,
        }
        for delivery in some:
            assert done(getattr(delivery, how)()) is self.is_open
            assert delivery.is_live is self.is_open
            self.finished[delivery._tag] = kinds[how]  # noqa: SLF001 - the broker's name for it

    @rule()
    def flush(self) -> None:
        self.tap.flush()
        self.read()
        if self.is_open:
            assert not self.finished, "all that is finished is told"

    @rule()
    def turn(self) -> None:
        """A turn of the loop, in which the tap writes unless the other end does not keep up."""
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        assert not (self.is_stalled and self.socket.written)
        self.read()
        if self.is_open and not self.is_stalled:
            assert not self.finished

    @precondition(lambda self: not self.is_stalled)
    @rule()
    def stall(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.read()
        self.tap.pause_writing()
        self.is_stalled = True

    @precondition(lambda self: self.is_stalled)
    @rule()
    def flow(self) -> None:
        self.tap.resume_writing()
        self.is_stalled = False

    @precondition(lambda self: self.is_open)
    @rule(ours=st.booleans())
    def close(self, *, ours: bool) -> None:
        if ours:
            self.tap.passing(frame.marshal(commands.Channel.Close(200, "", 0, 0), CHANNEL))
            self.read()
            assert not self.finished, "all that was finished is told before the close"
        else:
            self.tap.data_received(frame.marshal(commands.Channel.Close(404, "", 60, 20), CHANNEL))
            self.socket.written.clear()  # what crosses the broker's close is not looked at
        self.is_open = False
        self.finished.clear()

    @invariant()
    def counts_are_kept(self) -> None:
        if self.is_open:
            held = {delivery._tag for delivery in self.held}  # noqa: SLF001 - see above
            assert self.out == held | set(self.finished)


TestSettlements = Broker.TestCase


def test_a_finished_prefix_is_one_frame_and_what_is_beyond_a_gap_one_each() -> None:
    settling = Settling(CHANNEL)
    for tag in range(1, 9):
        settling.begin(tag)
    for tag in (1, 2, 3, 5, 7):
        settling.ack(tag)
    first, *others = frames_in(settling.frames())
    assert (first.delivery_tag, first.multiple) == (3, True)
    assert sorted((ack.delivery_tag, ack.multiple) for ack in others) == [(5, False), (7, False)]
    settling.ack(4)
    assert [(ack.delivery_tag, ack.multiple) for ack in frames_in(settling.frames())] == [
        (4, False)
    ]
    settling.hand_back(6)
    settling.ack(8)
    assert [ack.delivery_tag for ack in frames_in(settling.frames())] == [6, 8]
    assert settling.frames() == b""


def test_what_is_remembered_is_bounded_by_what_is_out() -> None:
    settling = Settling(CHANNEL)
    for tag in range(1, 50_001):
        settling.begin(tag)
        if tag % 10_000 != 1:  # five handlers that take for ever
            settling.ack(tag)
            settling.frames()
    remembered = [kept for kept in vars(settling).values() if isinstance(kept, set | list | dict)]
    assert sum(map(len, remembered)) == 5
