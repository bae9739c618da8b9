"""A private database server that a test may kill: its own port, data and log."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.programs import program

START_TIMEOUT_S = 60.0


class DatabaseNode(ABC):
    """One server, to be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """With a login that may do everything, to a database that is there."""

    @abstractmethod
    def prepare(self) -> None:
        """Make its data, once."""

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    user: str | None = None
    """Whom it runs as, where it refuses to run as root."""

    crash = signal.SIGKILL

    def start(self) -> None:
        """Start it, and wait until it lets clients in."""
        with (self.folder / "output").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                told = (self.folder / "output").read_text(errors="replace")[-4_000:]
                raise RuntimeError(f"the database did not start\n{told}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a crash would: nothing is flushed. One that is down stays so."""
        if self._process is not None:
            self._process.send_signal(self.crash)
            self._process.wait()
            self._process = None

    def run(self, *command: str) -> None:
        subprocess.run(
            command, check=True, cwd=self.folder, user=self.user, stdout=subprocess.DEVNULL
        )


class PostgresNode(DatabaseNode):
    # It kills its children first, which would outlive a SIGKILL for a moment and be in the way.
    crash = signal.SIGQUIT

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._programs = Path(program("initdb", *debians_initdb())).resolve().parent
        if os.geteuid() == 0:
            self.user = "postgres"
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        initdb = str(self._programs / "initdb")
        self.run(initdb, "-D", "data", "-U", "postgres", "--auth=trust", "--encoding=UTF8")

    def command(self) -> list[str]:
        return [
            *(str(self._programs / "postgres"), "-D", "data", "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
            *("-c", "max_connections=200"),
        ]

    def answers(self) -> bool:
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0


class MariaNode(DatabaseNode):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._installer = program("mariadb-install-db")
        # An account that is not root may lack the folders for administrators in its PATH.
        self._server = program("/usr/sbin/mariadbd", "mariadbd")

    @property
    def url(self) -> str:
        return f"mariadb://evworker:evworker@127.0.0.1:{self.port}/test"

    def prepare(self) -> None:
        account = pwd.getpwuid(os.geteuid()).pw_name
        (self.folder / "first.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4;\n"
            "CREATE USER IF NOT EXISTS evworker@'127.0.0.1' IDENTIFIED BY 'evworker';\n"
            "GRANT ALL ON *.* TO evworker@'127.0.0.1';\n"
        )
        self.run(
            self._installer,
            *("--no-defaults", f"--datadir={self.folder}/data", f"--user={account}"),
            "--auth-root-authentication-method=normal",
        )

    def command(self) -> list[str]:
        account = pwd.getpwuid(os.geteuid()).pw_name
        return [
            *(self._server, "--no-defaults", f"--user={account}", f"--datadir={self.folder}/data"),
            *(f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"),
            *(f"--socket={self.folder}/socket", f"--init-file={self.folder}/first.sql"),
        ]

    def answers(self) -> bool:
        return "maria" in greeting(self.port).lower()


def debians_initdb() -> list[str]:
    """Where Debian has it, off the PATH and for each version by itself; the newest first."""
    return sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)


def greeting(port: int) -> str:
    """What a server says first; MariaDB tells its version."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(256).decode("latin-1")
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port: int = placeholder.getsockname()[1]
        return port
