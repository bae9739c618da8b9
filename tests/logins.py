"""Does a broker or a database answer at a URL? Whole logins, spoken over plain sockets.

Standard library only, because it is asked before anything is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
from collections.abc import Iterator
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

ANSWER_TIMEOUT_S = 5.0

PORTS = {"amqp": 5672, "amqps": 5671, "mysql": 3306, "mariadb": 3306}


class NoServiceError(Exception):
    """No such service; str() is one sentence, without credentials, for whoever needs it."""


class NotListeningError(NoServiceError):
    """Nothing accepts connections at the address, so one may be started there."""


def address(url: str) -> str:
    """Host and port, which unlike the whole URL may be printed."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{port(parts)}"


def port(parts: SplitResult) -> int:
    try:
        given = parts.port
    except ValueError:
        raise NoServiceError(f"the port of {parts.hostname} is not a number") from None
    return given or PORTS.get(parts.scheme, 5432)


@contextlib.contextmanager
def connected(parts: SplitResult, what: str) -> Iterator[socket.socket]:
    """A TCP (or TLS, for amqps) connection; whatever goes wrong inside is a NoServiceError."""
    where = f"{parts.hostname}:{port(parts)}"
    target = (parts.hostname or "127.0.0.1", port(parts))
    try:
        raw = socket.create_connection(target, timeout=ANSWER_TIMEOUT_S)
    except OSError as error:
        raise NotListeningError(f"nothing listens on {where} ({error.strerror or error})") from (
            error
        )
    try:
        with raw, secured(raw, parts) as stream:
            yield stream
    except (OSError, struct.error) as error:
        raise NoServiceError(f"what listens on {where} is no {what} ({error})") from error


def secured(stream: socket.socket, parts: SplitResult) -> socket.socket:
    if parts.scheme != "amqps":
        return stream
    options = parse_qs(parts.query)
    context = ssl.create_default_context(cafile=options.get("cafile", [None])[0])
    if certificate := options.get("certfile", [None])[0]:
        context.load_cert_chain(certificate, options.get("keyfile", [None])[0])
    return context.wrap_socket(stream, server_hostname=parts.hostname)


def read_exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = stream.recv(size - len(data))
        if not chunk:
            raise ConnectionError("it closed the connection")
        data += chunk
    return data


START, START_OK, TUNE, TUNE_OK, OPEN, OPEN_OK, CLOSE = 10, 11, 30, 31, 40, 41, 50


def broker_version(url: str) -> str:
    """The version of the broker that accepts the URL's user, password and virtual host.

    Goes through AMQP's whole opening, from the protocol header to connection.open-ok.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"amqp", "amqps"}:
        raise NoServiceError(
            f"the URL for {parts.hostname} does not begin with amqp:// or amqps://"
        )
    user = unquote(parts.username or "guest")
    with connected(parts, "AMQP broker") as stream:
        stream.sendall(b"AMQP\x00\x00\x09\x01")
        greeting = expect(stream, START, "")
        login = f"\0{user}\0{unquote(parts.password or 'guest')}".encode()
        send(stream, START_OK, bytes(4) + short(b"PLAIN") + long(login) + short(b"en_US"))
        refusal = f"{address(url)} refuses the login of {user!r}"
        limits = expect(stream, TUNE, refusal)
        send(stream, TUNE_OK, limits[:6] + bytes(2))
        virtual_host = unquote(parts.path[1:]) or "/"
        send(stream, OPEN, short(virtual_host.encode()) + bytes(2))
        expect(
            stream, OPEN_OK, f"{address(url)} refuses {user!r} the virtual host {virtual_host!r}"
        )
        send(stream, CLOSE, struct.pack(">H", 200) + short(b"") + bytes(4))
        read_frame(stream)
    return property_of(greeting, b"version")


def expect(stream: socket.socket, method: int, refusal: str) -> bytes:
    """The arguments of the method that has to come next; a refusal to log in is told as such."""
    try:
        frame = read_frame(stream)
    except ConnectionError:
        if refusal:
            raise NoServiceError(refusal) from None
        raise
    if struct.unpack(">HH", frame[:4]) != (10, method):
        raise NoServiceError(refusal or "it does not open an AMQP 0-9-1 connection")
    return frame[4:]


def read_frame(stream: socket.socket) -> bytes:
    kind, _channel, size = struct.unpack(">BHI", read_exactly(stream, 7))
    if kind != 1:  # anything but a method, such as another protocol's banner
        raise ConnectionError("it does not speak AMQP 0-9-1")
    return read_exactly(stream, size + 1)[:-1]


def send(stream: socket.socket, method: int, arguments: bytes) -> None:
    payload = struct.pack(">HH", 10, method) + arguments
    stream.sendall(struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce")


def short(text: bytes) -> bytes:
    return struct.pack(">B", len(text)) + text


def long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def property_of(greeting: bytes, name: bytes) -> str:
    """A long string of the server's properties, found by its key in the encoded table."""
    _, found, rest = greeting.partition(short(name) + b"S")
    if not found:
        return "of unknown version"
    (size,) = struct.unpack(">I", rest[:4])
    return rest[4 : 4 + size].decode()


def database_answers(url: str) -> None:
    """Return if a PostgreSQL accepts the URL's user and database, or asks for its password.

    Raises NoServiceError with the server's own message if it does not.
    """
    parts = urlsplit(url)
    if not parts.scheme.startswith("postgres"):
        raise NoServiceError(f"the URL for {parts.hostname} does not begin with postgresql://")
    user = unquote(parts.username or "postgres")
    database = unquote(parts.path[1:]) or user
    pairs = ("user", user, "database", database)
    payload = struct.pack(">I", 196608) + b"".join(f"{text}\0".encode() for text in pairs) + b"\0"
    with connected(parts, "PostgreSQL") as stream:
        stream.sendall(struct.pack(">I", len(payload) + 4) + payload)
        kind = b"R"
        while kind != b"Z":  # ready for queries; before it the role and database may be refused
            kind, size = struct.unpack(">cI", read_exactly(stream, 5))
            if kind not in b"RSKNEZ":
                raise ConnectionError("it does not speak PostgreSQL's protocol")
            body = read_exactly(stream, size - 4)
            if kind == b"E":
                message = next((f[1:] for f in body.split(b"\0") if f[:1] == b"M"), b"no reason")
                raise NoServiceError(f"{address(url)} says: {message.decode(errors='replace')}")
            if kind == b"R" and body[:4] != bytes(4):
                if parts.password:
                    return
                raise NoServiceError(f"{address(url)} asks {user!r} for a password")


# https://mariadb.com/kb/en/connection/: protocol 4.1, secure connection, plugin by name
CAPABILITIES = 0x200 | 0x8000 | 0x80000
CONNECT_WITH_DATABASE = 0x8
OK, SWITCH, REFUSED = 0x00, 0xFE, 0xFF


def mysql_version(url: str) -> str:
    """The version of the MariaDB or MySQL that accepts the URL's user, password and database.

    A server that wants another kind of password exchange than the classic one is taken to accept.
    """
    parts = urlsplit(url)
    if not parts.scheme.startswith(("mysql", "mariadb")):
        raise NoServiceError(
            f"the URL for {parts.hostname} does not begin with mysql:// or mariadb://"
        )
    with connected(parts, "MariaDB or MySQL") as stream:
        number, greeting = read_packet(stream)
        if greeting[:1] == b"\xff":
            raise NoServiceError(f"{address(url)} says: {greeting[3:].decode(errors='replace')}")
        if greeting[:1] != b"\x0a":
            raise ConnectionError("it does not speak MySQL's protocol")
        version, _, rest = greeting[1:].partition(b"\0")
        challenge = rest[4:12] + rest[31:43]
        login = mysql_login(parts, challenge)
        stream.sendall(struct.pack("<I", len(login))[:3] + bytes([number + 1]) + login)
        _, answer = read_packet(stream)
        if answer[0] == REFUSED:
            raise NoServiceError(f"{address(url)} says: {answer[9:].decode(errors='replace')}")
        if answer[0] not in {OK, SWITCH}:
            raise ConnectionError("it does not answer a login")
    return version.decode(errors="replace").removeprefix("5.5.5-")  # MariaDB, for old replicas


def mysql_login(parts: SplitResult, challenge: bytes) -> bytes:
    password = unquote(parts.password or "").encode()
    proof = scrambled(password, challenge) if password else b""
    database = unquote(parts.path[1:]).encode()
    flags = CAPABILITIES | (CONNECT_WITH_DATABASE if database else 0)
    user = unquote(parts.username or "root").encode()
    login = struct.pack("<IIB23x", flags, 2**24 - 1, 45) + user + b"\0" + short(proof)
    return login + (database + b"\0" if database else b"") + b"mysql_native_password\0"


def scrambled(password: bytes, challenge: bytes) -> bytes:
    once = hashlib.sha1(password, usedforsecurity=False).digest()
    twice = hashlib.sha1(once, usedforsecurity=False).digest()
    mask = hashlib.sha1(challenge + twice, usedforsecurity=False).digest()
    return bytes(left ^ right for left, right in zip(once, mask, strict=True))


def read_packet(stream: socket.socket) -> tuple[int, bytes]:
    header = read_exactly(stream, 4)
    size = int.from_bytes(header[:3], "little")
    return header[3], read_exactly(stream, size)
