"""Where the broker is and how to log in: a URL, read once, never printed with its password."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from yarl import URL

from evworker.broker.errors import BrokerUrlError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_PORTS = {"amqp": 5672, "amqps": 5671}
_OPTIONS = ("heartbeat", "cafile", "certfile", "keyfile", "auth")

DEFAULT_HEARTBEAT_S = 20
"""A dead peer is noticed after about three times this; RabbitMQ advises 5 to 20
(https://www.rabbitmq.com/docs/heartbeats#heartbeats-timeout)."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One or several hosts of one RabbitMQ, with the login that all of them take.

    ``amqp://user:password@host:5672,other:5672/vhost?heartbeat=20``; with ``amqps`` over TLS, where
    ``cafile``, ``certfile`` and ``keyfile`` name PEM files and ``auth=external`` logs in with the
    certificate. The server's certificate is always verified.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: bool = False
    heartbeat_s: int = DEFAULT_HEARTBEAT_S
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    external_login: bool = False

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a broker URL; raises BrokerUrlError that names the part that is wrong."""
        scheme, separator, rest = url.strip().partition("://")
        scheme = scheme.lower()
        if scheme not in _PORTS:
            begins = f"begins with {scheme + separator!r}" if separator else "has no scheme"
            raise _refused(f"it {begins} instead of 'amqp://' or 'amqps://'")
        # By hand: urlsplit refuses several hosts of which one is IPv6, and quotes the password.
        netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
        parts = urlsplit(f"//host{rest[len(netloc) :]}")
        if rest.count("@") > 1:
            raise _refused("write %40 for '@' inside user and password; one login serves all hosts")
        if "@" in rest and "@" not in netloc:
            raise _refused("write %2F, %3F and %23 for '/', '?' and '#' inside user and password")
        if parts.fragment:
            raise _refused("it holds a '#'; write %23 for one inside a name or the password")
        login, _, hosts = netloc.rpartition("@")
        user, _, password = login.partition(":")
        options = _read_options(parts)
        return cls(
            hosts=tuple(
                # Without a login it may be one whose host was forgotten: not to be shown.
                _read_host(host, _PORTS[scheme], shown=repr(host) if login else f"number {number}")
                for number, host in enumerate(hosts.split(","), 1)
            ),
            user=unquote(user) if login else "guest",
            password=unquote(password) if login else "guest",
            vhost=unquote(parts.path[1:]) or "/",
            tls=scheme == "amqps",
            heartbeat_s=_read_heartbeat(options.get("heartbeat", str(DEFAULT_HEARTBEAT_S))),
            cafile=options.get("cafile"),
            certfile=options.get("certfile"),
            keyfile=options.get("keyfile"),
            external_login=options.get("auth", "plain") == "external",
        )

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        hosts = ",".join(_written(host, port) for host, port in self.hosts)
        return f"{scheme}://{self.user}@{hosts}/{'' if self.vhost == '/' else self.vhost}"

    def url_of(self, host: str, port: int) -> URL:
        """The URL of one host as aiormq reads it, password included: never to be printed."""
        query = {"heartbeat": str(self.heartbeat_s)}
        if self.external_login:
            query["auth"] = "external"
        return URL.build(
            scheme="amqps" if self.tls else "amqp",
            user=self.user,
            password=self.password,
            host=host,
            port=port,
            # aiormq takes the path without its first slash as the name of the virtual host.
            path="/" if self.vhost == "/" else "/" + self.vhost,
            query=query,
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings, or None without TLS; raises BrokerUrlError for unreadable files."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(name for name in (self.cafile, self.certfile, self.keyfile) if name)
            raise BrokerUrlError(
                f"can't load the TLS files of the broker URL ({files}): {error}"
            ) from error
        return context


def _refused(reason: str) -> BrokerUrlError:
    # The URL itself stays out of the message: it holds the password.
    return BrokerUrlError(
        f"can't read the broker URL: {reason}; write for example amqp://user:password@localhost:5672/vhost"
    )


def _read_host(text: str, default_port: int, *, shown: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refused(f"the host {shown} or its port is wrong") from None
    if not host:
        raise _refused("a host is missing")
    return host, port or default_port


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_options(parts: SplitResult) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise _refused(f"the option {name!r} is unknown; there are {', '.join(_OPTIONS)}")
    if options.get("auth", "plain") not in ("plain", "external"):
        raise _refused(f"auth={options['auth']!r} is unknown; there are 'plain' and 'external'")
    return options


def _read_heartbeat(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 65_535:
        raise _refused(f"heartbeat={text!r} is not a number of seconds")
    return int(text)
