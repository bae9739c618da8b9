"""Which deliveries of a channel are done with, and the fewest frames that say so. Pure.

::

    tags      1  2  3  4  5  6  7
    finished  ✓  ✓  ✓     ✓     ✓      ack 3 with all before it; 5 and 7 by themselves
                      ✓                ack 4; nothing of 5
                            ✓          ack 6; nothing of 7

What is finished behind one that is not can't wait for it: it would keep its place in the prefetch.
An ack covers what came before it only where all of that is finished, so that no ack ever is ahead
of a delivery (https://www.rabbitmq.com/docs/confirms#consumer-acks-multiple-parameter).
"""

from __future__ import annotations

import struct
from itertools import chain, takewhile

from evworker.broker.fastlane.frames import (
    BASIC_ACK,
    BASIC_NACK,
    BASIC_REJECT,
    FRAME_END,
    METHOD,
)

_ARGUMENTS_BYTES = 13
_settle = struct.Struct(">BHIIQBB").pack

_MULTIPLE = 1
_REQUEUE_IN_NACK = 2


class Settling:
    """The deliveries of one channel."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._unsettled: dict[int, None] = {}
        """The tags that the broker awaits an answer for, in the order in which they came."""
        self._finished: set[int] = set()
        """Those among them that the broker has yet to be told of."""
        self._frames: list[bytes] = []

    def begin(self, tag: int) -> None:
        """It has come, after all those before it."""
        self._unsettled[tag] = None

    def ack(self, tag: int) -> None:
        """It is done with."""
        if tag in self._unsettled:
            self._finished.add(tag)

    def hand_back(self, tag: int) -> None:
        """It is to be delivered again."""
        self._settle_alone(BASIC_NACK, tag, _REQUEUE_IN_NACK)

    def reject(self, tag: int) -> None:
        """The broker is to dead-letter it."""
        self._settle_alone(BASIC_REJECT, tag, 0)

    def frames(self) -> bytes:
        """All that the broker has yet to be told, once."""
        frames, self._frames = self._frames, []
        unsettled, finished = self._unsettled, self._finished
        prefix = list(takewhile(finished.__contains__, unsettled))
        if prefix:
            flags = _MULTIPLE if len(prefix) > 1 else 0
            frames.append(self._frame(BASIC_ACK, prefix[-1], flags))
            finished.difference_update(prefix)
        frames += [self._frame(BASIC_ACK, tag, 0) for tag in finished]
        for tag in chain(prefix, finished):
            del unsettled[tag]
        finished.clear()
        return b"".join(frames)

    def _settle_alone(self, index: int, tag: int, flags: int) -> None:
        # Written before any ack that could cover it.
        if tag in self._unsettled and tag not in self._finished:
            del self._unsettled[tag]
            self._frames.append(self._frame(index, tag, flags))

    def _frame(self, index: int, tag: int, flags: int) -> bytes:
        return _settle(METHOD, self._channel, _ARGUMENTS_BYTES, index, tag, flags, FRAME_END)
