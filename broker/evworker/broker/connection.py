"""One supervised connection to the broker.

::

             open()               lost: back-off, next host
    closed ─────────► connecting ◄─────────────────────────── ready ⇄ blocked
                          │  refused                            │
                          ▼                                     ▼ close()
                       refused                                closed

aio-pika's own robust connections are not used: one missing queue keeps them in an endless loop,
and their timeouts do not hold while they are disconnected. Here the connection only knows how to be
there. Who needs a channel asks for one, and asks again when that one has died: so publishers and
consumers each resume in the way that is right for them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

import aio_pika
import aiormq.exceptions
import structlog

from evworker.broker import tolerance
from evworker.broker.address import BrokerAddress
from evworker.broker.backoff import LONGEST_S, backoff_s
from evworker.broker.cancellation import cancel_all, raise_if_cancelled
from evworker.broker.channels import is_channel_error, reason_of
from evworker.broker.errors import BrokerError, BrokerRefusedError, BrokerUnreachableError
from evworker.broker.fastlane.switch import is_switched_on
from evworker.broker.fastlane.tap import Tap, TapFactory
from evworker.broker.version import BrokerVersion

if TYPE_CHECKING:
    from types import TracebackType

    from aio_pika.abc import AbstractConnection, UnderlayConnection
    from aiormq.abc import AbstractChannel
    from aiormq.abc import AbstractConnection as Link

log = structlog.get_logger("evworker.connection")

CONNECT_TIMEOUT_S = 10.0
CHANNEL_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0

# A broker that restarts can refuse logins and virtual hosts for a moment. Someone who was let in
# before is therefore patient; someone who never was is told at once.
REFUSAL_PATIENCE_S = 60.0

_BLOCKED_CHECK_S = 1.0


class Connection:
    """A connection that comes back by itself: other hosts, back-off with jitter, and a name.

    ``async with Connection("amqp://…", name="billing") as connection: …`` opens it, and raises what
    `open` raises. Publishing and consuming should each have their own: a broker that is short of
    memory blocks those that publish (https://www.rabbitmq.com/docs/alarms).
    """

    def __init__(self, address: str | BrokerAddress, *, name: str) -> None:
        """Raises BrokerUrlError. Connects to nothing yet."""
        tolerance.install()
        self.address = BrokerAddress.parse(address) if isinstance(address, str) else address
        self.name = name
        self.is_blocked = False
        self._ssl_context = self.address.ssl_context()
        self._next_host = 0
        self._owner: AbstractConnection | None = None
        self._link: Link | None = None
        self._tap: Tap | None = None
        self._version: BrokerVersion | None = None
        self._failure: BrokerError | None = None
        self._changed = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    @property
    def version(self) -> BrokerVersion:
        """The version of the broker that answered last. Only once opened."""
        if self._version is None:
            raise BrokerError(f"the connection {self.name!r} was never open; call open() first")
        return self._version

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self, *, wait_s: float | None = 0.0) -> None:
        """Connect, and stay connected until `close`.

        With `wait_s` 0 every host is tried once; a positive number keeps trying for that many
        seconds, None for ever. Raises BrokerUnreachableError when none answered in that time, and
        BrokerRefusedError at once when one did and said no.
        """
        deadline = None if wait_s is None else asyncio.get_running_loop().time() + wait_s
        async with self._opening:
            if self._supervisor is not None:
                return
            self._failure = None
            try:
                await self._connect(deadline)
            except BaseException:
                await self._drop()
                raise
            self._supervisor = asyncio.create_task(self._supervise(), name=self.name)

    async def close(self) -> None:
        """Close for good; may be called twice, or without `open`."""
        if self._supervisor is not None:
            await cancel_all(self._supervisor)
            self._supervisor = None
        self._failure = BrokerError(f"the connection {self.name!r} is closed")
        await self._drop()
        self._announce()

    async def break_off(self) -> None:
        """End the link, as if the network had; then it comes back, as after any loss."""
        if self._link is not None:
            await self._link.close()

    async def channel(self, *, confirms: bool = False) -> AbstractChannel:
        """A new channel, once the connection is ready: waits for as long as that takes.

        Raises BrokerRefusedError while the broker refuses to take us back, and BrokerError after
        `close`. With `confirms` it is for publishing, and a returned message raises.
        """
        while True:
            link = await self._ready()
            try:
                # A broker that blocks publishers answers no channel.open on their connections.
                # Not wait_for, here and below: Python 3.11's can swallow a cancellation.
                async with asyncio.timeout(CHANNEL_TIMEOUT_S):
                    return await link.channel(
                        publisher_confirms=confirms, on_return_raises=confirms
                    )
            except BaseException as error:
                if not is_channel_error(error):
                    raise
                if link is self._link and not link.is_closed:
                    why = reason_of(error)
                    raise BrokerError(f"can't open a channel on {self.address}: {why}") from error
                await asyncio.sleep(0)  # the supervisor has yet to hear of it

    def tap_of(self, channel: AbstractChannel) -> Tap | None:
        """What can read its hot frames off the stream; None where the fast lane is switched off.

        Raises BrokerError when the channel's connection is gone.
        """
        if channel.connection is not self._link:
            raise BrokerError("the connection was lost")
        return self._tap

    async def _ready(self) -> Link:
        while self._link is None or self._link.is_closed:
            if self._failure is not None:
                raise self._failure
            if self._supervisor is None:
                raise BrokerError(f"the connection {self.name!r} is not open; call open() first")
            changed = self._changed
            if self._link is not None:
                await asyncio.sleep(0)
                continue
            await changed.wait()
        return self._link

    async def _supervise(self) -> None:
        while self._link is not None:
            watcher = asyncio.create_task(self._watch_blocked(self._link))
            try:
                await asyncio.wait([self._link.closing])
            finally:
                watcher.cancel()
            reason = _reason_of(self._link.closing)
            await self._drop()
            log.warning("broker connection lost", connection=self.name, reason=reason)
            await self._reconnect()
            log.info("broker connection restored", connection=self.name, broker=str(self.address))
            self._announce()

    async def _watch_blocked(self, link: Link) -> None:
        # aiormq tells nobody that the broker has blocked it, except whoever waits for ready().
        while True:
            await asyncio.sleep(_BLOCKED_CHECK_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await link.ready()
                continue
            self.is_blocked = True
            log.warning(
                "the broker blocks publishing: it is short of memory or disk space",
                connection=self.name,
            )
            await link.ready()
            self.is_blocked = False
            log.info("the broker takes messages again", connection=self.name)

    async def _connect(self, deadline: float | None) -> None:
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._connect_to_any_host()
            except BrokerUnreachableError as failure:
                if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                    raise
                await self._pause(attempt, failure)
            else:
                return

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._connect_to_any_host()
            except BrokerRefusedError as refusal:
                if loop.time() - started >= REFUSAL_PATIENCE_S:
                    # Who waits is told; we go on asking, since nobody else would begin again.
                    self._failure = refusal
                    self._announce()
                await self._pause(attempt, refusal)
            except BrokerUnreachableError as failure:
                await self._pause(attempt, failure)
            else:
                self._failure = None
                return

    async def _pause(self, attempt: int, failure: BrokerError) -> None:
        delay_s = LONGEST_S if self._failure else backoff_s(attempt)
        log.warning(
            "broker not reached, trying again",
            connection=self.name,
            reason=str(failure),
            attempt=attempt,
            delay_s=round(delay_s, 1),
        )
        await asyncio.sleep(delay_s)

    async def _connect_to_any_host(self) -> None:
        reasons = []
        for _ in self.address.hosts:
            host, port = self.address.hosts[self._next_host % len(self.address.hosts)]
            try:
                await self._connect_to(host, port)
            except BrokerUnreachableError as error:
                reasons.append(str(error))
                self._next_host += 1
            else:
                return
            finally:
                raise_if_cancelled()  # aiormq's handshake can swallow it, and succeed or fail
        raise BrokerUnreachableError("; ".join(reasons))

    async def _connect_to(self, host: str, port: int) -> None:
        where = f"{host}:{port}"
        owner = aio_pika.Connection(
            self.address.url_of(host, port),
            ssl_context=self._ssl_context,
            client_properties={"connection_name": self.name, "product": "evworker"},
        )
        taps = TapFactory() if is_switched_on() else None
        if taps is not None:
            # connect() hands it on to aiormq; the constructor takes it for a part of the URL.
            owner.kwargs["transport_factory"] = taps
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await owner.connect()
        except TimeoutError as error:
            raise BrokerUnreachableError(
                f"{where} did not answer within {CONNECT_TIMEOUT_S:g} s"
            ) from error
        except Exception as error:
            # Anything can come out of a handshake with something that is no broker.
            raise self._explained(where, error) from error
        link = cast("UnderlayConnection", owner.transport).connection  # there: connect() returned
        self._owner = owner
        self._version = BrokerVersion.of(link.server_properties)
        self._link = link
        self._tap = taps.tap if taps is not None else None
        if self._tap is not None:
            self._tap.expect_frames(link.connection_tune.frame_max)

    def _explained(self, where: str, error: Exception) -> BrokerError:  # noqa: PLR0911 - a table
        address, cause = self.address, error.__cause__ or error
        match error:
            case (
                aiormq.exceptions.ProbableAuthenticationError()
                | aiormq.exceptions.AuthenticationError()
            ):
                return BrokerRefusedError(
                    f"{where} refused the login of {address.user!r}: wrong password, no such user, "
                    "or a user who may only log in on the broker's own host (as 'guest' may)"
                )
            # aiormq reports the broker's refusal of connection.open as an unexpected frame.
            case aiormq.exceptions.InvalidFrameError() if "Connection.Close" in str(error):
                return BrokerRefusedError(
                    f"{where} refused the virtual host {address.vhost!r} to user {address.user!r}: "
                    "it does not exist, or the user has no permissions in it"
                )
            case aiormq.exceptions.ConnectionNotAllowed():
                return BrokerRefusedError(
                    f"{where} refused the virtual host {address.vhost!r}: {error}"
                )
        match cause:
            case ssl.SSLCertVerificationError():
                return BrokerRefusedError(
                    f"the certificate of {where} can't be trusted: {cause.verify_message}; "
                    "name the authority's file with ?cafile=… in the broker URL"
                )
            case ssl.SSLError():
                return BrokerRefusedError(
                    f"TLS with {where} failed: {cause.reason or cause}{self._tls_hint()}"
                )
            case socket.gaierror():
                return BrokerUnreachableError(
                    f"the host name of {where} is not known ({cause.strerror})"
                )
            case ConnectionRefusedError():
                return BrokerUnreachableError(
                    f"nothing listens on {where}; is RabbitMQ running there?"
                )
            case (
                aiormq.exceptions.ProtocolSyntaxError()
                | aiormq.exceptions.IncompatibleProtocolError()
            ):
                return BrokerUnreachableError(f"{where} answers, but does not speak AMQP 0-9-1")
            case asyncio.IncompleteReadError():
                spoke = "does not speak AMQP 0-9-1" if cause.partial else "closes the connection"
                return BrokerUnreachableError(f"{where} answers, but {spoke}{self._tls_hint()}")
        return BrokerUnreachableError(
            f"can't connect to {where}: {str(cause) or type(cause).__name__}{self._tls_hint()}"
        )

    def _tls_hint(self) -> str:
        if not self.address.tls:
            return ""
        if self.address.certfile:
            return "; is that its port for TLS, and does it trust the certificate of certfile=…?"
        return (
            "; is that its port for TLS, and does it ask for a client certificate "
            "(?certfile=…&keyfile=…)?"
        )

    async def _drop(self) -> None:
        owner, self._owner, self.is_blocked = self._owner, None, False
        self._link = self._tap = None
        if owner is not None:
            # A peer that has vanished never answers the close, and where something waits to be sent
            # yet, aiormq swallows the first cancellation.
            closing = asyncio.create_task(owner.close())
            try:
                await asyncio.wait([closing], timeout=CLOSE_TIMEOUT_S)
            finally:
                await cancel_all(closing, timeout_s=CLOSE_TIMEOUT_S)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _reason_of(closing: asyncio.Future[object]) -> str:
    if closing.cancelled():
        return "closed"
    error = closing.exception()
    return "the broker closed the socket" if error is None else reason_of(error)
