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
    """The deliveries of one channel, from its opening on: their tags are 1, 2, 3 and so on."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._first = 1
        """The lowest tag that is not known to be settled."""
        self._finished: set[int] = set()
        """Those that the broker has yet to be told of."""
        self._told: set[int] = set()
        """Those from `_first` on of which it knows."""
        self._frames: list[bytes] = []

    def ack(self, tag: int) -> None:
        """It is done with."""
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
        finished, told = self._finished, self._told
        if not finished:
            return b"".join(frames)
        first, last, several = self._first, 0, False
        while True:
            if first in finished:
                finished.remove(first)
                last, several = first, bool(last)
            elif first in told:
                told.remove(first)
            else:
                break
            first += 1
        self._first = first
        if last:
            frames.append(self._frame(BASIC_ACK, last, _MULTIPLE if several else 0))
        if finished:
            frames += [self._frame(BASIC_ACK, tag, 0) for tag in finished]
            told |= finished
            finished.clear()
        return b"".join(frames)

    def _settle_alone(self, index: int, tag: int, flags: int) -> None:
        # Written before any ack that could cover it.
        self._frames.append(self._frame(index, tag, flags))
        self._told.add(tag)

    def _frame(self, index: int, tag: int, flags: int) -> bytes:
        return _settle(METHOD, self._channel, _ARGUMENTS_BYTES, index, tag, flags, FRAME_END)
