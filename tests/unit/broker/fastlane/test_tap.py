"""The tap on a socket: whose channel it is that ends."""

from __future__ import annotations

import asyncio

from pamqp import commands, frame

from evworker.broker.fastlane.tap import Tap


class Ended:
    contents: frozenset[int] = frozenset()
    methods: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.times = 0

    def content(self, index: int, method: bytes, header: bytes, body: bytes) -> None:
        raise AssertionError

    def method(self, index: int, arguments: bytes) -> None:
        raise AssertionError

    def closed(self) -> None:
        self.times += 1


async def test_nobody_is_told_of_a_channel_that_only_has_the_number_of_his() -> None:
    loop = asyncio.get_running_loop()
    tap = Tap(asyncio.StreamReader(loop=loop), loop)
    ended = Ended()
    tap.tap(3, ended)
    tap.data_received(frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 60, 40), 3))
    assert ended.times == 1
    tap.passing(frame.marshal(commands.Channel.Close(200, "", 0, 0), 3))
    tap.connection_lost(None)
    assert ended.times == 1
