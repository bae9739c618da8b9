"""One connection: frames in and out, the handshake, heartbeats, and its channels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pamqp import commands
from pamqp.base import Frame
from pamqp.heartbeat import Heartbeat

from evworker.broker.embedded.channel import Channel
from evworker.broker.embedded.content import Content
from evworker.broker.embedded.framing import (
    BODY,
    FRAME_END,
    FRAME_HEADER,
    FRAME_OVERHEAD,
    HEADER,
    HEARTBEAT,
    METHOD,
    decoded_method,
    frames_of,
)
from evworker.broker.embedded.refusals import Code, Refusal
from evworker.broker.embedded.vhost import VirtualHost

if TYPE_CHECKING:
    from evworker.broker.embedded.server import EmbeddedBroker

VERSION = "4.0.5"
"""The RabbitMQ whose behaviour is followed."""

FRAME_MAX = 131_072
CHANNEL_MAX = 2_047
HEARTBEAT_S = 60

_GREETING = b"AMQP\x00\x00\x09\x01"
_SMALLEST_FRAME_MAX = 4_096
_CLOSE_TIMEOUT_S = 3.0
_HANDSHAKE_TIMEOUT_S = 10.0

_CAPABILITIES = dict.fromkeys(
    (
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
    ),
    True,
)

_Methods = commands.Connection


class Connection(asyncio.Protocol):
    """A client, from its greeting to its end."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.faults = broker.faults
        self.user = ""
        self.vhost: VirtualHost
        self.channels: dict[int, Channel] = {}
        self.is_writable = True
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._awaits: type[Frame] | None = None
        """What the handshake awaits, or None when it is over."""
        self._is_greeted = False
        self._is_closing = False
        self._is_blocked = False
        self._capabilities: dict[str, object] = {}
        self._frame_max = FRAME_MAX
        self._heartbeat_s = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._last_read = self._last_written = 0.0
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._not_before = 0.0

    def can(self, capability: str) -> bool:
        """Whether the client said so."""
        return self._capabilities.get(capability) is True

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._broker.connections[self] = None
        self._beat = self._loop.call_later(_HANDSHAKE_TIMEOUT_S, self._transport.abort)
        self.go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self._broker.connections.pop(self, None)
        if self._beat is not None:
            self._beat.cancel()
        self._end()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        for channel in self.channels.values():
            channel.serve_all()

    def data_received(self, data: bytes) -> None:
        self._last_read = self._loop.time()
        self._buffer += data
        self._read()

    def _read(self) -> None:
        at = 0
        try:
            while not self._is_held_up() and (end := self._end_of_frame(at)):
                start, at = at, end
                self._on_frame(bytes(self._buffer[start:end]))
        except Refusal as refusal:
            self.close(refusal)
        del self._buffer[:at]

    def _is_held_up(self) -> bool:
        return self._is_blocked or self.faults.is_deaf or self._transport.is_closing()

    def go_on(self) -> None:
        if self._is_blocked and self.faults.alarm is None:
            self._is_blocked = False
            if self.can("connection.blocked"):
                self.send(0, _Methods.Unblocked())
        if self._is_held_up():
            self._transport.pause_reading()
        else:
            self._last_read = self._loop.time()
            self._transport.resume_reading()
            self._read()

    def publishes(self) -> None:
        """A publish has begun: as long as an alarm is on, its connection is not read on."""
        if self.faults.alarm is not None and not self._is_blocked:
            self._is_blocked = True
            self._transport.pause_reading()
            if self.can("connection.blocked"):
                self.send(0, _Methods.Blocked(self.faults.alarm))

    # Frames

    def _end_of_frame(self, at: int) -> int:
        """Where the frame ends that begins here, or 0 if it has not come wholly."""
        buffer = self._buffer
        if not self._is_greeted:
            return 8 if len(buffer) >= 8 else 0
        if len(buffer) < at + FRAME_HEADER:
            return 0
        size = int.from_bytes(buffer[at + 3 : at + FRAME_HEADER])
        if size > self._frame_max - FRAME_OVERHEAD:
            limit = self._frame_max - FRAME_OVERHEAD
            reason = f"type {buffer[at]}: {{frame_too_large,{size},{limit}}}"
            raise Refusal(Code.FRAME_ERROR, reason)
        end = at + size + FRAME_OVERHEAD
        return end if len(buffer) >= end else 0

    def _on_frame(self, data: bytes) -> None:
        if not self._is_greeted:
            self._greet(data)
            return
        kind, number, payload = data[0], int.from_bytes(data[1:3]), data[FRAME_HEADER:-1]
        if data[-1] != FRAME_END:
            reason = f"type {kind}: {{invalid_frame_end_marker,{data[-1]}}}"
            raise Refusal(Code.FRAME_ERROR, reason)
        if kind == HEARTBEAT:
            return
        if kind not in (METHOD, HEADER, BODY):
            raise Refusal(Code.FRAME_ERROR, f"type {kind}: unknown_frame")
        method = decoded_method(payload) if kind == METHOD else None
        if self._is_closing:
            self._on_frame_while_closing(method)
        elif number == 0:
            self._on_own_method(method)
        else:
            self._on_channel_frame(number, kind, method, payload)

    def _on_channel_frame(
        self, number: int, kind: int, method: Frame | None, payload: bytes
    ) -> None:
        channel = self.channels.get(number)
        if self._awaits is not None:
            raise Refusal(Code.CHANNEL_ERROR, "unexpected frame during the handshake")
        if isinstance(method, commands.Channel.Open):
            self._open_channel(number)
        elif channel is None:
            raise Refusal(Code.CHANNEL_ERROR, "expected 'channel.open'")
        elif isinstance(method, commands.Channel.Close):
            self.send(number, commands.Channel.CloseOk())
            if not channel.is_closed:
                del self.channels[number]
                channel.end()
        elif not channel.is_closed:
            self._give_to(channel, kind, method, payload)
        elif isinstance(method, commands.Channel.CloseOk):
            del self.channels[number]

    def _give_to(self, channel: Channel, kind: int, method: Frame | None, payload: bytes) -> None:
        try:
            if method is not None:
                channel.on_method(method)
            elif kind == HEADER:
                channel.on_header(payload)
            else:
                channel.on_body(payload)
        except Refusal as refusal:
            if refusal.ends_connection:
                raise
            self._close_channel(channel, refusal, method)

    def _open_channel(self, number: int) -> None:
        if number in self.channels:
            raise Refusal(Code.CHANNEL_ERROR, "second 'channel.open' seen")
        if len(self.channels) >= CHANNEL_MAX:
            raise Refusal(
                Code.NOT_ALLOWED,
                f"number of channels opened ({len(self.channels)}) has reached the negotiated "
                f"channel_max ({CHANNEL_MAX})",
            )
        self.channels[number] = Channel(self, number)
        self.send(number, commands.Channel.OpenOk())

    def send(
        self, number: int, method: Frame, content: Content | None = None, body: bytes = b""
    ) -> None:
        """Send a method, and the message that belongs to it."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frames_of(number, method, content, body, frame_max=self._frame_max)

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        now = self._loop.time()
        self._last_written = now
        due = max(now + self.faults.latency_s, self._not_before)
        if due <= now:
            self._transport.write(data)
        else:
            self._not_before = due
            self._loop.call_at(due, self._transport.write, data)

    # The handshake

    def _greet(self, greeting: bytes) -> None:
        if greeting != _GREETING:
            self._transport.write(_GREETING)
            self._transport.close()
            self._is_closing = True
            return
        self._is_greeted = True
        self._awaits = _Methods.StartOk
        properties: dict[str, Any] = {
            "product": "evworker embedded",
            "version": VERSION,
            "platform": "Python",
            "capabilities": dict(_CAPABILITIES),
        }
        self.send(0, _Methods.Start(0, 9, properties, "PLAIN", "en_US"))

    def _on_own_method(self, method: Frame | None) -> None:
        if isinstance(method, _Methods.Close):
            self.send(0, _Methods.CloseOk())
            self._hang_up()
        elif self._awaits is not None:
            if not isinstance(method, self._awaits):
                raise Refusal(Code.CHANNEL_ERROR, "unexpected method during the handshake")
            self._STEPS[self._awaits](self, method)
        elif isinstance(method, _Methods.UpdateSecret):
            self.send(0, _Methods.UpdateSecretOk())
        else:
            raise Refusal(Code.CHANNEL_ERROR, "unexpected method in connection state running")

    def _on_start_ok(self, method: commands.Connection.StartOk) -> None:
        capabilities = (method.client_properties or {}).get("capabilities")
        self._capabilities = dict(capabilities) if isinstance(capabilities, dict) else {}
        _, _, login = str(method.response).partition("\0")
        user, _, password = login.partition("\0")
        if method.mechanism != "PLAIN" or self._broker.users.get(user) != password:
            raise Refusal(
                Code.ACCESS_REFUSED,
                f"Login was refused using authentication mechanism {method.mechanism}. "
                "For details see the broker logfile.",
            )
        self.user = user
        self._awaits = _Methods.TuneOk
        self.send(0, _Methods.Tune(CHANNEL_MAX, FRAME_MAX, HEARTBEAT_S))

    def _on_tune_ok(self, method: commands.Connection.TuneOk) -> None:
        for name, value, least, most in (
            ("channel_max", method.channel_max, 1, CHANNEL_MAX),
            ("frame_max", method.frame_max, _SMALLEST_FRAME_MAX, FRAME_MAX),
        ):
            if not least <= value <= most:
                raise Refusal(
                    Code.NOT_ALLOWED,
                    f"negotiated {name} = {value} is not between {least} and {most}",
                )
        self._frame_max = method.frame_max
        self._heartbeat_s = float(method.heartbeat)
        self._awaits = _Methods.Open

    def _on_open(self, method: commands.Connection.Open) -> None:
        vhost = self._broker.vhost(method.virtual_host)
        if vhost is None:
            raise Refusal(Code.NOT_ALLOWED, f"vhost {method.virtual_host} not found")
        self.vhost = vhost
        self._awaits = None
        if self._beat is not None:
            self._beat.cancel()
        if self._heartbeat_s:
            self._beat = self._loop.call_later(self._heartbeat_s / 2, self._on_beat)
        self.send(0, _Methods.OpenOk())

    def _on_beat(self) -> None:
        now = self._loop.time()
        if not self._is_held_up() and now - self._last_read > 2 * self._heartbeat_s:
            self._transport.abort()
            return
        if now - self._last_written >= self._heartbeat_s / 2:
            self._last_written = now
            self._transport.write(Heartbeat.marshal())
        self._beat = self._loop.call_later(self._heartbeat_s / 2, self._on_beat)

    # The end

    def close(self, refusal: Refusal) -> None:
        """Tell the client why it has to go. Who does not answer is cut off after 3 seconds."""
        if not self._is_closing:
            self.send(0, _Methods.Close(int(refusal.code), str(refusal)[:255], 0, 0))
            self._is_closing = True
            self._end()
            self._loop.call_later(_CLOSE_TIMEOUT_S, self._transport.abort)

    def drop(self) -> None:
        """Be gone, without a word."""
        self._is_closing = True
        self._out.clear()
        self._transport.abort()
        self._end()

    def close_channels(self, refusal: Refusal, queue: str | None = None) -> None:
        """Close all channels, or those that consume from the queue."""
        for channel in [*self.channels.values()]:
            names = {each.queue.name for each in channel.consumers.values()}
            if not channel.is_closed and (queue is None or queue in names):
                self._close_channel(channel, refusal, None)

    def _close_channel(self, channel: Channel, refusal: Refusal, cause: Frame | None) -> None:
        index = 0 if cause is None else cause.index
        self.send(
            channel.number,
            commands.Channel.Close(
                int(refusal.code), str(refusal)[:255], index >> 16, index & 0xFFFF
            ),
        )
        channel.end()

    def _on_frame_while_closing(self, method: Frame | None) -> None:
        if isinstance(method, _Methods.CloseOk):
            self._hang_up()
        elif isinstance(method, _Methods.Close):
            self.send(0, _Methods.CloseOk())

    def _hang_up(self) -> None:
        self._is_closing = True
        self._end()
        self._flush()
        self._transport.close()

    def _end(self) -> None:
        for channel in [*self.channels.values()]:
            channel.end()
        if hasattr(self, "vhost"):
            self.vhost.delete_queues_of(self)

    _STEPS: ClassVar[dict[type[Frame], Callable[[Connection, Any], None]]] = {
        _Methods.StartOk: _on_start_ok,
        _Methods.TuneOk: _on_tune_ok,
        _Methods.Open: _on_open,
    }
