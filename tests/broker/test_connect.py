"""Connecting: several hosts, coming back, and a clear word for each way to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from pamqp import commands
from pamqp.base import Frame
from structlog.testing import capture_logs

from evworker.broker import (
    BrokerAddress,
    BrokerError,
    BrokerRefusedError,
    BrokerUnreachableError,
    Connection,
    Exchange,
    Publisher,
    Queue,
    Topology,
    apply_topology,
    browse_dead_letters,
    count_messages,
    diff_topology,
)
from evworker.broker.intake import Intake
from tests.broker.events import OrderPlaced
from tests.proxy import Proxy, listening
from tests.waiting import eventually
from tests.wire import Wire, method_in

SECRET = "s3cret-and-wrong"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[BrokerAddress]:
    """Something that listens and is no broker."""
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        yield BrokerAddress((("127.0.0.1", port),), password=SECRET)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def dead_port() -> int:
    """A port on which nothing listens any more."""
    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port: int = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    return port


async def works(connection: Connection) -> bool:
    return await count_messages(connection, "there is no such queue") is None


async def refusal_of(address: BrokerAddress) -> BrokerError:
    connection = Connection(address, name="test")
    with capture_logs() as logs, pytest.raises(BrokerError) as refused:
        await connection.open()
    assert SECRET not in f"{refused.value} {refused.value!r} {logs}"
    # Nothing goes on behind our back, and asking for a channel does not hang.
    with pytest.raises(BrokerError, match="not open"):
        await connection.channel()
    return refused.value


# Refused and not reached


async def test_a_wrong_password_is_refused_at_once(broker_url: str) -> None:
    address = replace(BrokerAddress.parse(broker_url), password=SECRET)
    error = await refusal_of(address)
    assert isinstance(error, BrokerRefusedError)
    assert f"refused the login of {address.user!r}" in str(error)


async def test_an_unknown_user_is_refused_at_once(broker_url: str, unique: str) -> None:
    address = replace(BrokerAddress.parse(broker_url), user=unique, password=SECRET)
    error = await refusal_of(address)
    assert isinstance(error, BrokerRefusedError)
    assert f"refused the login of {unique!r}" in str(error)


async def test_an_unknown_virtual_host_is_refused_at_once(broker_url: str, unique: str) -> None:
    address = replace(BrokerAddress.parse(broker_url), vhost=unique)
    error = await refusal_of(address)
    assert isinstance(error, BrokerRefusedError)
    assert f"refused the virtual host {unique!r}" in str(error)
    assert address.password not in str(error).replace(address.user, "")


async def test_a_publisher_that_is_refused_says_so_and_does_not_retry(broker_url: str) -> None:
    address = replace(BrokerAddress.parse(broker_url), password=SECRET)
    with pytest.raises(BrokerRefusedError, match="refused the login"):
        async with Publisher(address):
            pass


async def test_nothing_that_listens_is_unreachable() -> None:
    port = await dead_port()
    error = await refusal_of(BrokerAddress((("127.0.0.1", port),), password=SECRET))
    assert isinstance(error, BrokerUnreachableError)
    assert f"nothing listens on 127.0.0.1:{port}; is RabbitMQ running there?" in str(error)


async def test_every_host_that_does_not_answer_is_named() -> None:
    ports = [await dead_port(), await dead_port()]
    hosts = tuple(("127.0.0.1", port) for port in ports)
    error = await refusal_of(BrokerAddress(hosts, password=SECRET))
    assert isinstance(error, BrokerUnreachableError)
    assert all(str(port) in str(error) for port in ports)


async def test_a_host_name_that_does_not_exist_is_unreachable() -> None:
    error = await refusal_of(BrokerAddress((("no-such-host.invalid", 5672),), password=SECRET))
    assert isinstance(error, BrokerUnreachableError)
    assert "no-such-host.invalid:5672" in str(error)


async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(8)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def want_another_amqp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(8)
    writer.write(b"AMQP\x03\x01\x00\x00")
    writer.close()


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (speak_http, "answers, but does not speak AMQP 0-9-1"),
        (want_another_amqp, "Unexpected AMQP protocol header"),
        (hang_up, "can't connect to"),
    ],
)
async def test_what_is_no_rabbitmq_is_unreachable(answer: Answer, what: str) -> None:
    async with server(answer) as address:
        error = await refusal_of(address)
    assert isinstance(error, BrokerUnreachableError)
    assert f"127.0.0.1:{address.hosts[0][1]}" in str(error)
    assert what in str(error)


async def test_what_never_answers_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evworker.broker.connection.CONNECT_TIMEOUT_S", 0.2)
    over = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with server(say_nothing) as address:
        error = await refusal_of(address)
        over.set()
    assert isinstance(error, BrokerUnreachableError)
    assert "did not answer within 0.2 s" in str(error)


# Several hosts


async def test_the_first_host_that_answers_is_taken(broker_url: str) -> None:
    address = BrokerAddress.parse(broker_url)
    hosts = (("127.0.0.1", await dead_port()), *address.hosts)
    async with Connection(replace(address, hosts=hosts), name="test") as connection:
        assert await works(connection)


async def test_another_host_takes_over(broker_url: str, exchange: str) -> None:
    async with listening(broker_url) as first, listening(broker_url) as second:
        both = replace(first.address, hosts=first.address.hosts + second.address.hosts)
        async with Publisher(both, exchange=exchange) as publisher:
            assert (first.connections, second.connections) == (1, 0)
            first.refuse()
            first.cut()
            await eventually(lambda: second.connections)
            await publisher.publish(OrderPlaced(order_id="42"))


# Names


def names_told(wire: Wire) -> list[object]:
    """The names that connections have from now on."""
    names: list[object] = []

    def look(_connection: int, data: bytes) -> bytes:
        if isinstance(method := method_in(data), commands.Connection.StartOk):
            names.append(method.client_properties["connection_name"])
        return data

    wire.from_client = look
    return names


async def test_the_broker_is_told_the_connections_name(wire: Wire) -> None:
    names = names_told(wire)
    async with Connection(wire.url, name="billing"):
        assert names == ["billing"]


async def test_a_publisher_names_its_connection_after_its_source(wire: Wire, exchange: str) -> None:
    names = names_told(wire)
    async with Publisher(wire.url, exchange=exchange, source="shop"):
        assert names == ["shop publisher"]


# Coming back


async def test_it_comes_back_and_says_so_without_the_password(proxy: Proxy) -> None:
    with capture_logs() as logs:
        async with Connection(proxy.address, name="billing") as connection:
            channel = await connection.channel()
            proxy.cut()
            assert await works(connection)
            assert channel.is_closed
    said = [(entry["event"], entry["connection"]) for entry in logs]
    assert ("broker connection lost", "billing") in said
    assert ("broker connection restored", "billing") in said
    assert "guest:guest" not in str(logs)
    assert proxy.connections == 2


async def test_who_asks_for_a_channel_meanwhile_waits(proxy: Proxy) -> None:
    async with Connection(proxy.address, name="test") as connection:
        proxy.refuse()
        proxy.cut()
        asking = [asyncio.create_task(connection.channel()) for _ in range(20)]
        await proxy.open()
        channels = await asyncio.gather(*asking)
        assert not any(channel.is_closed for channel in channels)


async def test_a_cut_in_the_middle_of_opening_a_channel_only_delays_it(wire: Wire) -> None:
    async with Connection(wire.url, name="test") as connection:
        asked = wire.stall_at(commands.Channel.Open)
        asking = asyncio.create_task(connection.channel())
        await asked.wait()
        wire.cut()
        wire.flow()
        assert not (await asking).is_closed


async def test_it_goes_on_trying_for_as_long_as_it_is_told_to(proxy: Proxy) -> None:
    proxy.refuse()
    connection = Connection(proxy.address, name="test")
    with capture_logs() as logs:
        opening = asyncio.create_task(connection.open(wait_s=None))
        await eventually(lambda: len(logs) >= 2)
        await proxy.open()
        await opening
    assert await works(connection)
    assert {entry["event"] for entry in logs} == {"broker not reached, trying again"}
    await connection.close()


async def test_one_that_is_refused_later_says_so_to_everybody(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evworker.broker.connection.REFUSAL_PATIENCE_S", 0.0)
    async with Connection(proxy.address, name="test") as connection:
        proxy.refuse()
        connection.address = replace(connection.address, password=SECRET)
        proxy.cut()
        await eventually(lambda: connection._link is None)  # noqa: SLF001 - before it returns
        asking = asyncio.create_task(connection.channel())
        await proxy.open()
        with pytest.raises(BrokerRefusedError, match="refused the login"):
            await asking
        with pytest.raises(BrokerRefusedError, match="refused the login"):
            await connection.channel()


async def test_a_refusal_while_the_broker_restarts_is_borne_for_a_while(proxy: Proxy) -> None:
    async with Connection(proxy.address, name="test") as connection:
        right = connection.address
        connection.address = replace(right, password=SECRET)
        with capture_logs() as logs:
            proxy.cut()
            await eventually(lambda: any("refused the login" in str(entry) for entry in logs))
        connection.address = right
        assert await works(connection)


# Opening and closing


async def test_it_opens_and_closes_as_often_as_one_likes(broker_url: str) -> None:
    connection = Connection(broker_url, name="test")
    await connection.close()
    for _ in range(2):
        await connection.open()
        await connection.open()
        assert await works(connection)
        await connection.close()
        await connection.close()
        with pytest.raises(BrokerError, match="is closed"):
            await connection.channel()


async def test_one_that_was_never_open_says_what_to_call(broker_url: str) -> None:
    connection = Connection(broker_url, name="test")
    with pytest.raises(BrokerError, match=r"call open\(\) first"):
        await connection.channel()
    with pytest.raises(BrokerError, match=r"call open\(\) first"):
        _ = connection.version


async def test_closing_ends_the_wait_for_a_channel(proxy: Proxy) -> None:
    connection = Connection(proxy.address, name="test")
    await connection.open()
    proxy.refuse()
    proxy.cut()
    asking = asyncio.create_task(connection.channel())
    await eventually(lambda: connection._link is None)  # noqa: SLF001 - before it comes back
    await connection.close()
    with pytest.raises(BrokerError, match="is closed"):
        await asking


async def test_closing_a_connection_to_a_broker_that_hangs_ends(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evworker.broker.connection.CLOSE_TIMEOUT_S", 0.2)
    connection = Connection(proxy.address, name="test")
    await connection.open()
    proxy.freeze()
    await connection.close()


async def test_nothing_of_it_goes_on_once_it_is_closed(proxy: Proxy) -> None:
    before = asyncio.all_tasks()
    async with Connection(proxy.address, name="test") as connection:
        proxy.cut()
        assert await works(connection)
    proxy.cut()
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_closing_while_it_comes_back_ends_at_whichever_moment(proxy: Proxy) -> None:
    for turns in range(60):
        connection = Connection(proxy.address, name="test")
        await connection.open()
        proxy.cut()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await connection.close()


# What is under way when the connection breaks

TOPOLOGY = Topology(
    (Exchange("evworker-test-never-made", "topic", {}),), (Queue("evworker-test-never-made", {}),)
)

Operation = Callable[[Connection], Awaitable[object]]

UNDER_WAY: dict[str, tuple[Operation, type[Frame]]] = {
    "count": (lambda connection: count_messages(connection, "none"), commands.Queue.Declare),
    "browse": (
        lambda connection: browse_dead_letters(connection, "none.dlq", 10),
        commands.Queue.Declare,
    ),
    "diff": (lambda connection: diff_topology(connection, TOPOLOGY), commands.Exchange.Declare),
    "consume": (
        lambda connection: Intake.open(connection, "none", prefetch=1, receive=print),
        commands.Basic.Qos,
    ),
}


@pytest.mark.parametrize("operation", UNDER_WAY)
async def test_what_is_under_way_fails_with_our_error_and_is_not_cancelled(
    wire: Wire, operation: str
) -> None:
    run, method = UNDER_WAY[operation]
    async with Connection(wire.url, name="test") as connection:
        asked = wire.stall_at(method)
        task = asyncio.ensure_future(run(connection))
        await asked.wait()
        wire.cut()
        with pytest.raises(BrokerError, match="can't"):
            await task
        wire.flow()
        assert await works(connection)


async def test_applying_a_topology_fails_with_our_error_and_is_not_cancelled(
    wire: Wire, unique: str
) -> None:
    async with Connection(wire.url, name="test") as connection:
        asked = wire.stall_at(commands.Queue.Declare)  # which the broker never sees
        topology = Topology(queues=(Queue(unique, {}),))
        task = asyncio.create_task(apply_topology(connection, topology))
        await asked.wait()
        wire.cut()
        with pytest.raises(BrokerError, match="can't declare queue"):
            await task
