"""Queues as the runner needs them: filled with exactly the bytes that a peer has published.

A connection of its own, straight on a socket: the messages of a peer are captured with their
headers as they came, and sent again as whole blocks of frames, which takes a fraction of the time
that a client library would.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.header import ContentHeader

_CHANNEL = 1
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_COUNT = "x-delivery-count"
_SETTLED_S = 120.0
"""How long the broker may take to count what it was sent."""


Answer = TypeVar("Answer", bound=Frame)


class QueueError(Exception):
    """The broker did not do what was asked of it."""


class Captured(NamedTuple):
    """A message as it came: what its header frame held, and its body."""

    header: bytes
    body: bytes


class Queues:
    """A connection to the broker that makes, fills, counts and removes queues.

    Where the broker answers with an error it closes the channel; the next call has a new one.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection(
            (parts.hostname or "127.0.0.1", parts.port or 5672), timeout=_SETTLED_S
        )
        self._received = bytearray()
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        started = self._expect(commands.Connection.Start)
        product = started.server_properties
        self.version = str(product.get("version", "unknown"))
        login = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
        self._send(commands.Connection.StartOk({}, "PLAIN", login, "en_US"), channel=0)
        tune = self._expect(commands.Connection.Tune)
        self._frame_max = tune.frame_max
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), channel=0)
        self._send(commands.Connection.Open(unquote(parts.path[1:]) or "/"), channel=0)
        self._expect(commands.Connection.OpenOk)
        self._open_channel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def declare(self, queue: str, queue_type: str) -> None:
        self._call(
            commands.Queue.Declare(
                queue=queue, durable=True, arguments={"x-queue-type": queue_type}
            ),
            commands.Queue.DeclareOk,
        )

    def depth(self, queue: str) -> int:
        """How many messages are ready in it."""
        declared = self._call(
            commands.Queue.Declare(queue=queue, passive=True), commands.Queue.DeclareOk
        )
        return declared.message_count or 0

    def has_queue(self, queue: str) -> bool:
        return self._has(commands.Queue.Declare(queue=queue, passive=True))

    def has_exchange(self, exchange: str) -> bool:
        return self._has(commands.Exchange.Declare(exchange=exchange, passive=True))

    def purge(self, queue: str) -> None:
        self._call(commands.Queue.Purge(queue=queue), commands.Queue.PurgeOk)

    def delete_queue(self, queue: str) -> None:
        """Whether there is one or not."""
        self._call(commands.Queue.Delete(queue=queue), commands.Queue.DeleteOk)

    def delete_exchange(self, exchange: str) -> None:
        """Whether there is one or not."""
        self._call(commands.Exchange.Delete(exchange=exchange), commands.Exchange.DeleteOk)

    def capture(self, queue: str) -> list[Captured]:
        """Take all messages out of a queue."""
        captured: list[Captured] = []
        while True:
            self._send(commands.Basic.Get(queue=queue, no_ack=True))
            kind, payload = self._frame()
            if kind == _METHOD and _method(payload) is not commands.Basic.GetOk:
                return captured
            _, properties = self._frame()
            size, body = int.from_bytes(properties[4:12]), b""
            while len(body) < size:
                body += self._frame()[1]
            captured.append(Captured(_as_published(properties), body))

    def fill(self, queue: str, messages: Sequence[Captured], count: int) -> None:
        """Publish these messages, over and over, until `count` of them are ready in the queue."""
        publish = frame.marshal(commands.Basic.Publish(routing_key=queue), _CHANNEL)
        blocks = [
            publish + _frame_of(_HEADER, message.header) + self._body_of(message)
            for message in messages
        ]
        whole = b"".join(blocks)
        for _ in range(count // len(blocks)):
            self._socket.sendall(whole)
        self._socket.sendall(b"".join(blocks[: count % len(blocks)]))
        self.await_depth(queue, count)

    def await_depth(self, queue: str, count: int, limit_s: float = _SETTLED_S) -> int:
        """Wait until so many messages are ready; returns how many are.

        Raises QueueError if there are others after the limit.
        """
        limit = time.monotonic() + limit_s
        while (depth := self.depth(queue)) != count:
            if time.monotonic() > limit:
                raise QueueError(f"{queue} has {depth:,} messages ready, instead of {count:,}")
            time.sleep(0.02)
        return depth

    def _body_of(self, message: Captured) -> bytes:
        size = self._frame_max - 8 if self._frame_max else len(message.body)
        return b"".join(
            _frame_of(_BODY, message.body[start : start + size])
            for start in range(0, len(message.body), size)
        )

    def _has(self, declaration: Frame) -> bool:
        self._send(declaration)
        answer = self._answer()
        if isinstance(answer, commands.Channel.Close):
            self._reopen()
            return False
        return True

    def _call(self, method: Frame, answer: type[Answer]) -> Answer:
        self._send(method)
        return self._expect(answer)

    def _expect(self, expected: type[Answer]) -> Answer:
        answer = self._answer()
        if isinstance(answer, commands.Channel.Close):
            self._reopen()
        if not isinstance(answer, expected):
            raise QueueError(f"the broker answered {answer!r}")
        return answer

    def _answer(self) -> Frame:
        kind, payload = self._frame()
        if kind != _METHOD:
            raise QueueError("the broker sent a message where an answer was due")
        answer = frame.unmarshal(_frame_of(_METHOD, payload))[2]
        if not isinstance(answer, Frame) or isinstance(answer, commands.Connection.Close):
            raise QueueError(f"the broker closed the connection: {answer!r}")
        return answer

    def _open_channel(self) -> None:
        self._call(commands.Channel.Open(), commands.Channel.OpenOk)

    def _reopen(self) -> None:
        self._send(commands.Channel.CloseOk())
        self._open_channel()

    def _send(self, method: Frame, channel: int = _CHANNEL) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _frame(self) -> tuple[int, bytes]:
        """The next frame's type and payload."""
        while True:
            head = self._bytes(7)
            payload = self._bytes(int.from_bytes(head[3:7]) + 1)[:-1]
            if head[0] != _HEARTBEAT:
                return head[0], payload

    def _bytes(self, count: int) -> bytes:
        while len(self._received) < count:
            more = self._socket.recv(65_536)
            if not more:
                raise QueueError("the broker closed the connection without a word")
            self._received += more
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def _frame_of(kind: int, payload: bytes) -> bytes:
    head = bytes([kind]) + _CHANNEL.to_bytes(2) + len(payload).to_bytes(4)
    return head + payload + b"\xce"


def _method(payload: bytes) -> type[Frame] | None:
    read = frame.unmarshal(_frame_of(_METHOD, payload))[2]
    return type(read) if isinstance(read, Frame) else None


def _as_published(header: bytes) -> bytes:
    """Without what a quorum queue adds to a message that is taken by `get`."""
    if _COUNT.encode() not in header:
        return header
    content = ContentHeader()
    content.unmarshal(header)
    (content.properties.headers or {}).pop(_COUNT, None)
    return content.marshal()
