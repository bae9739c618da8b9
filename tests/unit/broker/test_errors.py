"""No error of aiormq reaches a user by itself; ours are as the module's drawing shows them."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aio_pika
import aiormq
import pytest
from aiormq import exceptions, spec
from aiormq.abc import DeliveredMessage
from pamqp.header import ContentHeader

from evworker.broker import (
    Binding,
    BrokerError,
    BrokerVersion,
    Connection,
    ConnectionLostError,
    Event,
    EvworkerError,
    Exchange,
    MessageTooLargeError,
    Publisher,
    PublishError,
    PublishNackedError,
    Queue,
    Topology,
    UnroutableError,
    apply_topology,
    browse_dead_letters,
    count_messages,
    diff_topology,
    errors,
    tap,
)
from evworker.broker.intake import Intake

SECRET = "s3cret"
ADDRESS = f"amqp://user:{SECRET}@nowhere/"


class Happened(Event, topic="it.happened"):
    pass


# The drawing in the docstring


def drawn_tree() -> dict[str, str | None]:
    """Each class of the drawing, and its parent there."""
    assert errors.__doc__
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        drawn = re.match(r"[ │├└─]*(?P<name>\w+Error)\b", line)
        if drawn is None:
            continue
        column = drawn.start("name")
        while above and above[-1][0] >= column:
            above.pop()
        parents[drawn["name"]] = above[-1][1] if above else None
        above.append((column, drawn["name"]))
    return parents


def real_tree() -> dict[str, str | None]:
    own = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }
    return {
        kind.__name__: next((base.__name__ for base in kind.__bases__ if base in own), None)
        for kind in own
    }


def test_the_drawing_shows_the_errors_that_there_are() -> None:
    assert drawn_tree() == real_tree()
    assert len(drawn_tree()) > 15


# Theirs, mapped to ours


def returned() -> DeliveredMessage:
    frame = spec.Basic.Return(312, "NO_ROUTE", "events", "it.happened")
    return DeliveredMessage(
        delivery=frame,
        header=ContentHeader(),
        body=b"",
        channel=None,  # type: ignore[arg-type]
    )


def made(kind: type[BaseException]) -> BaseException:
    if kind is exceptions.PublishError:
        return exceptions.PublishError(returned(), spec.Basic.Return(312, "NO_ROUTE"))
    if kind is exceptions.DeliveryError:
        return exceptions.DeliveryError(None, spec.Basic.Nack(1))
    return kind("as the broker said")


THEIRS = sorted(
    {
        kind
        for _, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == exceptions.__name__
    },
    key=lambda kind: kind.__name__,
)
OTHERS: list[type[BaseException]] = [
    ConnectionResetError,
    BrokenPipeError,
    TimeoutError,
    asyncio.CancelledError,  # aiormq's way to end what waits on a channel that is closing
]


def test_their_errors_are_found() -> None:
    assert {exceptions.AMQPError, exceptions.ChannelInvalidStateError} < set(THEIRS)
    assert len(THEIRS) > 20


class FailingChannel:
    """Whatever is asked of it raises the error; it says that it is closed, as aiormq does then."""

    def __init__(self, error: BaseException) -> None:
        self.is_closed = False
        self._error = error
        self.on_consumer_cancel_callbacks: set[object] = set()
        self.closing = asyncio.get_running_loop().create_future()
        self.connection = SimpleNamespace(write_queue=asyncio.Queue())

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def fail(*arguments: object, **named: object) -> Any:
            self.is_closed = True
            raise self._error

        return fail

    async def close(self) -> None:
        self.is_closed = True


class FailingConnection(Connection):
    """Open, and each of its channels fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(ADDRESS, name="test")
        self._error = error
        self._version = BrokerVersion(3, 10)

    async def channel(self, *, confirms: bool = False) -> Any:
        return FailingChannel(self._error)


async def send(connection: Connection) -> None:
    # Large enough to go over a channel of its own: nothing is declared before.
    await Publisher(connection).send(
        b" " * 2**21,
        spec.Basic.Properties(message_id="1"),
        exchange="events",
        routing_key="it.happened",
    )


async def publish(connection: Connection) -> None:
    await Publisher(connection).publish(Happened())


async def first_tapped(connection: Connection) -> None:
    async for _ in tap(connection, "events", ["#"]):
        return


TOPOLOGY = Topology((Exchange("e", "topic", {}),), (Queue("q", {}),), (Binding("q", "e", "#"),))

OPERATIONS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "send": send,
    "publish": publish,
    "tap": first_tapped,
    "count": lambda connection: count_messages(connection, "q"),
    "browse": lambda connection: browse_dead_letters(connection, "q.dlq", 10),
    "apply": lambda connection: apply_topology(connection, TOPOLOGY),
    "diff": lambda connection: diff_topology(connection, TOPOLOGY),
    "bind": lambda connection: apply_topology(connection, Topology(bindings=TOPOLOGY.bindings)),
    "consume": lambda connection: Intake.open(connection, "q", prefetch=1, receive=print),
}

# Answers, and no failures: someone else's right, something not there, a definition to explain.
ANSWERS = (
    exceptions.ChannelAccessRefused,
    exceptions.ChannelNotFoundEntity,
    exceptions.ChannelPreconditionFailed,
)


@pytest.mark.parametrize("kind", [*THEIRS, *OTHERS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_their_errors_become_ours(operation: str, kind: type[BaseException]) -> None:
    error = made(kind)
    (result,) = await asyncio.gather(
        OPERATIONS[operation](FailingConnection(error)), return_exceptions=True
    )
    if isinstance(error, ANSWERS) and operation in ("count", "apply", "diff", "bind"):
        assert not isinstance(result, BaseException) or isinstance(result, BrokerError)
        return
    assert isinstance(result, PublishError if operation == "send" else BrokerError)
    assert SECRET not in str(result)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (made(exceptions.PublishError), UnroutableError),
        (made(exceptions.DeliveryError), PublishNackedError),
        (
            exceptions.ChannelPreconditionFailed("message size 2097152 is larger than max size 16"),
            MessageTooLargeError,
        ),
        (exceptions.ChannelNotFoundEntity("no exchange 'events' in vhost '/'"), UnroutableError),
        # Another publish's mistake closed the channel: ours may have been stored before.
        (
            exceptions.ChannelPreconditionFailed("message size 17 is larger than max size 16"),
            ConnectionLostError,
        ),
        (
            exceptions.ChannelNotFoundEntity("no exchange 'another' in vhost '/'"),
            ConnectionLostError,
        ),
        (exceptions.ConnectionClosed(320, "CONNECTION_FORCED"), ConnectionLostError),
        (exceptions.ChannelInvalidStateError("closed"), ConnectionLostError),
        (asyncio.CancelledError(), ConnectionLostError),
        (ConnectionResetError("reset"), ConnectionLostError),
    ],
    ids=lambda value: value.__name__ if inspect.isclass(value) else repr(value)[:40],
)
async def test_a_publish_that_fails_says_whether_the_broker_may_have_it(
    error: BaseException, ours: type[PublishError]
) -> None:
    with pytest.raises(PublishError) as raised:
        await send(FailingConnection(error))
    assert type(raised.value) is ours
    assert raised.value.__cause__ is error
    assert "it.happened 1: " in str(raised.value)


@pytest.mark.parametrize("kind", THEIRS, ids=lambda kind: kind.__name__)
async def test_their_errors_at_the_handshake_become_ours(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(self: object, timeout: float | None = None) -> None:
        raise made(kind)

    monkeypatch.setattr(aio_pika.Connection, "connect", connect)
    connection = Connection(ADDRESS, name="test")
    with pytest.raises(BrokerError) as raised:
        await connection.open()
    assert "nowhere:5672" in str(raised.value)
    assert SECRET not in str(raised.value)
    await connection.close()


@pytest.mark.parametrize("kind", [*THEIRS, *OTHERS], ids=lambda kind: kind.__name__)
async def test_their_errors_at_the_opening_of_a_channel_become_ours(
    kind: type[BaseException],
) -> None:
    class Link:
        is_closed = False

        async def channel(self, **options: object) -> aiormq.abc.AbstractChannel:
            raise made(kind)

    connection = Connection(ADDRESS, name="test")
    connection._link = Link()  # type: ignore[assignment]  # noqa: SLF001 - no broker refuses it
    with pytest.raises(BrokerError) as raised:
        await connection.channel()
    assert SECRET not in str(raised.value)


def test_a_url_that_can_not_be_used_is_no_reason_to_show_the_password() -> None:
    with pytest.raises(EvworkerError) as raised:
        Publisher(f"amqp://user:{SECRET}@host:port/")
    assert SECRET not in str(raised.value)
