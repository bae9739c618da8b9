"""Databases for tests: each test gets one of its own, and it is gone afterwards.

Made on the servers that EVWORKER_TEST_DATABASE_URL (PostgreSQL) and EVWORKER_TEST_MYSQL_URL
(MariaDB) name, or that the standard local ports have; SQLite's is a file in the test's folder.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import psycopg
import pymysql

from tests.logins import database_answers, mysql_version
from tests.services import database_url, mysql_url

KINDS = ("postgresql", "mariadb", "sqlite")
"""The kinds of database that a test of `database_url` runs on."""


@contextmanager
def own_database(kind: str, folder: Path, prefix: str = "t") -> Iterator[str]:
    """The URL of an empty database of that kind, as `open_engine` takes it.

    Raises NoServiceError if there is no server for it.
    """
    name = f"{prefix}_{uuid.uuid4().hex[:10]}".replace("-", "_")
    if kind == "sqlite":
        yield f"sqlite:///{folder / name}.db"
        return
    server = _server(kind)
    run = _on_postgresql if kind == "postgresql" else _on_mariadb
    run(server, f"CREATE DATABASE {name}")
    try:
        yield server._replace(path=f"/{name}").geturl()
    finally:
        if kind == "mariadb":
            _end_sessions(server, name)
        run(server, f"DROP DATABASE {name}" + (" WITH (FORCE)" if kind == "postgresql" else ""))


@functools.cache
def _server(kind: str) -> SplitResult:
    find, check = _SERVERS[kind]
    url = find()
    check(url)
    return urlsplit(url)


_SERVERS: dict[str, tuple[Callable[[], str], Callable[[str], object]]] = {
    "postgresql": (database_url, database_answers),
    "mariadb": (mysql_url, mysql_version),
}


def _on_postgresql(server: SplitResult, sql: str) -> None:
    with psycopg.connect(server.geturl(), autocommit=True) as connection:
        connection.execute(sql.encode())


def _on_mariadb(server: SplitResult, sql: str) -> tuple[tuple[Any, ...], ...]:
    connection = pymysql.connect(
        host=server.hostname or "127.0.0.1",
        port=server.port or 3306,
        user=unquote(server.username or "root"),
        password=unquote(server.password or ""),
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return tuple(cursor.fetchall())


def _end_sessions(server: SplitResult, name: str) -> None:
    # A session that a failed test left open would hold the tables, and DROP would wait for it.
    listed = f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
    for (session,) in _on_mariadb(server, listed):
        try:
            _on_mariadb(server, f"KILL {session}")
        except pymysql.err.OperationalError as error:
            if error.args[0] != 1094:  # it has ended by itself
                raise
