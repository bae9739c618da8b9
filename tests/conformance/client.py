"""A client that hides nothing: it sends the frames that it is told to, and keeps those that come.

The libraries in use check, retry, rename and forget before a test can see what the broker did.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pamqp import body, commands, frame, header
from pamqp.base import Frame
from pamqp.commands import Basic, Confirm, Exchange, Queue

from tests.waiting import eventually

F = TypeVar("F", bound=Frame)

ANSWER_TIMEOUT_S = 10.0
PROTOCOL_HEADER = header.ProtocolHeader().marshal()
_BODY_BYTES = 100_000  # a frame of less than what brokers offer
_CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


class RefusedError(Exception):
    """The broker closed the channel or the connection, and said why."""

    def __init__(self, scope: str, code: int, text: str) -> None:
        super().__init__(f"{scope} {code} {text}")
        self.scope = scope
        self.code = code
        self.text = text


@dataclass
class Message:
    """What a Deliver, GetOk or Return brought."""

    method: Any
    properties: Basic.Properties
    body: bytes

    @property
    def tag(self) -> int:
        return cast("int", self.method.delivery_tag)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def redelivered(self) -> bool:
        return cast("bool", self.method.redelivered)

    @property
    def headers(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.properties.headers or {})


@dataclass
class Channel:
    """One channel; what comes on it unasked lies in its queues."""

    link: Link
    number: int
    answers: asyncio.Queue[Frame | Message] = field(default_factory=asyncio.Queue)
    deliveries: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    returned: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    confirms: asyncio.Queue[Basic.Ack | Basic.Nack] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    refusal: asyncio.Future[RefusedError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def send(self, *frames: frame.FrameTypes) -> None:
        self.link.send(b"".join(frame.marshal(each, self.number) for each in frames))

    async def call(self, method: Frame) -> Any:
        """Send it and await the answer; raises RefusedError."""
        self.send(method)
        return await self._next(self.answers)

    async def declare(self, name: str = "", **options: Any) -> Queue.DeclareOk:
        """A queue, with `arguments`; durable unless told otherwise."""
        options = {"durable": True, **options}
        return cast("Queue.DeclareOk", await self.call(Queue.Declare(queue=name, **options)))

    async def exchange(self, name: str, kind: str = "direct", **options: Any) -> None:
        await self.call(Exchange.Declare(exchange=name, exchange_type=kind, **options))

    async def bind(self, queue: str, exchange: str, key: str = "", **arguments: Any) -> None:
        await self.call(
            Queue.Bind(queue=queue, exchange=exchange, routing_key=key, arguments=arguments)
        )

    async def confirm(self) -> Self:
        await self.call(Confirm.Select())
        return self

    def publish(
        self,
        key: str,
        payload: bytes = b"",
        *,
        exchange: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        headers: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        content = Basic.Properties(headers=dict(headers) if headers else None, **properties)
        self.send(
            Basic.Publish(
                exchange=exchange, routing_key=key, mandatory=mandatory, immediate=immediate
            ),
            header.ContentHeader(0, len(payload), content),
            *(
                body.ContentBody(payload[at : at + _BODY_BYTES])
                for at in range(0, len(payload), _BODY_BYTES)
            ),
        )

    async def next_confirm(self) -> Basic.Ack | Basic.Nack:
        return cast("Basic.Ack | Basic.Nack", await self._next(self.confirms))

    async def confirmed(self) -> bool:
        """Whether the next confirm is an ack."""
        return isinstance(await self.next_confirm(), Basic.Ack)

    async def close(self) -> None:
        await self.call(commands.Channel.Close(200, "", 0, 0))

    async def put(self, key: str, *payloads: bytes | str, **options: Any) -> None:
        """Publish these, one after the other, and see each of them acked."""
        for payload in payloads:
            data = payload.encode() if isinstance(payload, str) else payload
            self.publish(key, data, **options)
            assert await self.confirmed()

    async def consume(self, queue: str, *, prefetch: int = 0, **options: Any) -> str:
        """Subscribe; returns the consumer's tag."""
        if prefetch:
            await self.call(Basic.Qos(prefetch_count=prefetch))
        answer = await self.call(Basic.Consume(queue=queue, **options))
        return cast("str", answer.consumer_tag)

    async def delivered(self) -> Message:
        """The next delivery."""
        return cast("Message", await self._next(self.deliveries))

    async def bodies(self, count: int) -> list[str]:
        """The bodies of the next deliveries."""
        return [(await self.delivered()).body.decode() for _ in range(count)]

    async def get(self, queue: str, *, no_ack: bool = True) -> Message | None:
        answer = await self.call(Basic.Get(queue=queue, no_ack=no_ack))
        return answer if isinstance(answer, Message) else None

    async def arrives(self, queue: str, *, no_ack: bool = True) -> Message:
        """The next message of a queue, as soon as there is one."""
        found = await eventually(
            lambda: self.get(queue, no_ack=no_ack), f"a message in {queue}", timeout_s=10.0
        )
        assert found is not None
        return found

    async def count(self, queue: str) -> int:
        """How many messages are ready."""
        answer = await self.call(Queue.Declare(queue=queue, passive=True))
        return cast("int", answer.message_count)

    async def counts(self, queue: str, expected: int) -> None:
        """Wait until so many messages are ready."""

        async def reached() -> bool:
            assert await self.count(queue) == expected
            return True

        assert await eventually(reached, f"{expected} in {queue}", timeout_s=10.0)

    async def take(self, queue: str) -> list[str]:
        """The bodies of all that is in a queue, which is empty then."""
        taken = []
        while (message := await self.get(queue)) is not None:
            taken.append(message.body.decode())
        return taken

    async def returned_message(self) -> Message:
        return cast("Message", await self._next(self.returned))

    async def cancelled_tag(self) -> str:
        """The tag of the consumer that the broker cancels next."""
        return cast("str", await self._next(self.cancelled))

    async def refuses(self, method: Frame) -> RefusedError:
        """Send what the broker is going to refuse; how it does."""
        self.send(method)
        return await self.refused()

    async def refused(self) -> RefusedError:
        """Why the broker closed this channel or its connection, once it does."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await self.refusal

    async def _next(self, source: asyncio.Queue[Any]) -> Any:
        waiting = asyncio.ensure_future(source.get())
        done, _ = await asyncio.wait(
            [waiting, self.refusal], timeout=ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if waiting in done:
            return waiting.result()
        waiting.cancel()
        if self.refusal.done():
            raise self.refusal.result()
        raise TimeoutError("the broker does not answer")


class Link:
    """One connection. `closed` is done when it is over, with the broker's reason if it gave one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection: asyncio.Queue[Frame] = asyncio.Queue()
        """The methods that came on channel 0."""
        self.closed: asyncio.Future[RefusedError | None] = (
            asyncio.get_running_loop().create_future()
        )
        self.heartbeats = 0
        self.server_properties: dict[str, Any] = {}
        self.channels: dict[int, Channel] = {}
        self._reader = reader
        self._writer = writer
        self._reading = asyncio.create_task(self._read())
        self._refusal: RefusedError | None = None

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def send_method(self, method: Frame, channel: int = 0) -> None:
        self.send(frame.marshal(method, channel))

    async def expect(self, kind: type[F]) -> F:
        """The next method on channel 0, which is of this kind; raises RefusedError."""
        waiting: asyncio.Future[Any] = asyncio.ensure_future(self.connection.get())
        await asyncio.wait(
            [waiting, self.closed],
            timeout=ANSWER_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not waiting.done():
            waiting.cancel()
            raise (self.closed.done() and self.closed.result()) or TimeoutError(kind.name)
        method = waiting.result()
        assert isinstance(method, kind), method
        return method

    async def handshake(
        self,
        vhost: str = "/",
        *,
        user: str = "guest",
        password: str = "guest",
        heartbeat: int = 0,
        mechanism: str = "PLAIN",
        **tuned: int,
    ) -> None:
        self.send(PROTOCOL_HEADER)
        start = await self.expect(commands.Connection.Start)
        self.server_properties = cast("dict[str, Any]", start.server_properties)
        self.send_method(
            commands.Connection.StartOk(
                client_properties={"capabilities": dict(_CAPABILITIES)},
                mechanism=mechanism,
                response=f"\0{user}\0{password}",
            )
        )
        tune = await self.expect(commands.Connection.Tune)
        limits = {"channel_max": tune.channel_max, "frame_max": tune.frame_max, **tuned}
        self.send_method(commands.Connection.TuneOk(heartbeat=heartbeat, **limits))
        self.send_method(commands.Connection.Open(virtual_host=vhost))
        await self.expect(commands.Connection.OpenOk)

    def raw_channel(self, number: int) -> Channel:
        """A channel that the broker was told nothing of."""
        self.channels[number] = Channel(self, number)
        return self.channels[number]

    async def channel(self) -> Channel:
        opened = self.raw_channel(len(self.channels) + 1)
        await opened.call(commands.Channel.Open())
        return opened

    async def ended(self) -> RefusedError | None:
        """Why the broker ended the connection, once the socket is closed."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await asyncio.shield(self.closed)

    def pause(self) -> None:
        """Leave what comes where it is."""
        cast("asyncio.Transport", self._writer.transport).pause_reading()

    def resume(self) -> None:
        cast("asyncio.Transport", self._writer.transport).resume_reading()

    def abort(self) -> None:
        """Be gone, without a word."""
        self._writer.transport.abort()

    async def close(self) -> None:
        if not self.closed.done():
            self.send_method(commands.Connection.Close(200, "", 0, 0))
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await asyncio.shield(self.closed)
        self._writer.close()
        self._reading.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await self._reading
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while True:
                start = await self._reader.readexactly(7)
                rest = await self._reader.readexactly(int.from_bytes(start[3:7]) + 1)
                if start[0] == 8:
                    self.heartbeats += 1
                    continue
                _, number, read = frame.unmarshal(start + rest)
                if number and number not in self.channels:
                    continue
                if number:
                    await self._on_channel(self.channels[number], cast("Any", read))
                else:
                    self._on_connection(cast("Frame", read))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._end()

    def _end(self) -> None:
        if not self.closed.done():
            self.closed.set_result(self._refusal)
        for channel in self.channels.values():
            if not channel.refusal.done():
                lost = RefusedError("socket", 0, "closed without a word")
                channel.refusal.set_result(self._refusal or lost)

    def _on_connection(self, method: Frame) -> None:
        if isinstance(method, commands.Connection.Close):
            self._refusal = RefusedError(
                "connection", method.reply_code or 0, method.reply_text or ""
            )
            self.send_method(commands.Connection.CloseOk())
            self._end()  # the broker may take its time to close the socket
        elif isinstance(method, commands.Connection.CloseOk):
            self._reader.feed_eof()
        else:
            self.connection.put_nowait(method)

    async def _on_channel(self, channel: Channel, method: Frame) -> None:
        match method:
            case Basic.Deliver():
                channel.deliveries.put_nowait(await self._message(method))
            case Basic.Return():
                channel.returned.put_nowait(await self._message(method))
            case Basic.GetOk():
                channel.answers.put_nowait(await self._message(method))
            case Basic.Ack() | Basic.Nack():
                channel.confirms.put_nowait(method)
            case Basic.Cancel():
                channel.cancelled.put_nowait(method.consumer_tag or "")
            case commands.Channel.Close():
                channel.send(commands.Channel.CloseOk())
                if not channel.refusal.done():  # it may have been opened and refused again
                    channel.refusal.set_result(
                        RefusedError("channel", method.reply_code or 0, method.reply_text or "")
                    )
            case _:
                channel.answers.put_nowait(method)

    async def _message(self, method: Frame) -> Message:
        start = await self._frame()
        assert isinstance(start, header.ContentHeader)
        payload = b""
        while len(payload) < start.body_size:
            part = await self._frame()
            assert isinstance(part, body.ContentBody)
            payload += part.value
        return Message(method, start.properties, payload)

    async def _frame(self) -> frame.FrameTypes:
        start = await self._reader.readexactly(7)
        rest = await self._reader.readexactly(int.from_bytes(start[3:7]) + 1)
        return frame.unmarshal(start + rest)[2]


async def connect(url: str) -> Link:
    """A socket to the broker, on which nothing was said yet."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 5672)
    return Link(reader, writer)


@asynccontextmanager
async def linked(url: str, **options: Any) -> AsyncIterator[Link]:
    """A connection that is open, and closed in the end."""
    link = await connect(url)
    parts = urlsplit(url)
    try:
        login = {"user": parts.username or "guest", "password": parts.password or "guest"}
        await link.handshake(unquote(parts.path[1:]) or "/", **{**login, **options})
        yield link
    finally:
        await link.close()
