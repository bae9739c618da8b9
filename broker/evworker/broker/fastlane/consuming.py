"""Consuming off the tap: deliveries as they arrive, settlements gathered into a write a turn."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from evworker.broker.delivery import Delivery
from evworker.broker.fastlane.frames import BASIC_DELIVER, FrameError
from evworker.broker.fastlane.settling import Settling

if TYPE_CHECKING:
    from collections.abc import Callable

    from evworker.broker.fastlane.tap import Tap

_tag_and_redelivered = struct.Struct(">QB").unpack_from
_ROUTE_AFTER_TAG = 9


class TappedDeliveries:
    """The deliveries of one channel, from its opening on, for as long as it lives.

    `receive` is called with each of them as it is read off the wire.
    """

    contents = frozenset((BASIC_DELIVER,))
    methods = frozenset[int]()

    def __init__(
        self, tap: Tap, channel: int, queue: str, receive: Callable[[Delivery], None]
    ) -> None:
        self.is_live = True
        self._tap = tap
        self._queue = queue
        self._receive = receive
        self._settling = Settling(channel)
        self._is_gathering = False
        self._last = 0
        """The tag of the last delivery: they count up, from 1."""
        self._route: bytes | None = None
        """Its exchange and routing key."""
        tap.tap(channel, self)

    def content(self, _index: int, method: bytes, header: bytes, body: bytes) -> None:
        """A delivery; one that comes behind the channel's close is void."""
        if not self.is_live:
            return
        try:
            at = 1 + method[0]  # behind the consumer's tag
            tag, redelivered = _tag_and_redelivered(method, at)
            route = method[at + _ROUTE_AFTER_TAG :]
            if route != self._route:  # most come by the one before them came by
                if len(route) != 2 + route[0] + route[1 + route[0]]:
                    raise FrameError("a delivery whose exchange and routing key do not fill it")
                self._route = route
        except (LookupError, struct.error) as error:
            raise FrameError("a delivery that is too short") from error
        if tag != self._last + 1:
            raise FrameError(f"delivery {tag} behind {self._last}")
        self._last = tag
        self._settling.begin(tag)
        self._receive(Delivery(self._queue, self, tag, bool(redelivered), route, header, body))

    def method(self, index: int, arguments: bytes) -> None:
        """Never called: there is none without a content among those that are tapped."""

    def closed(self) -> None:
        """Nothing can be settled here any more."""
        self.is_live = False

    def ack_at_once(self, tag: int) -> bool:
        """As SettlingChannel has it."""
        self._settling.ack(tag)
        return self._gather()

    async def ack(self, tag: int) -> bool:
        """As SettlingChannel has it."""
        return self.ack_at_once(tag)

    async def hand_back(self, tag: int) -> bool:
        """As SettlingChannel has it."""
        self._settling.hand_back(tag)
        return self._gather()

    async def reject(self, tag: int) -> bool:
        """As SettlingChannel has it."""
        self._settling.reject(tag)
        return self._gather()

    def _gather(self) -> bool:
        if self.is_live and not self._is_gathering:
            self._is_gathering = True
            self._tap.write_gathered(self._frames)
        return self.is_live

    def _frames(self) -> bytes:
        self._is_gathering = False
        return self._settling.frames() if self.is_live else b""
