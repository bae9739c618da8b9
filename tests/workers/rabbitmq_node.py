"""A private RabbitMQ node that a test may kill: its own name, ports, data and log."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

from tests.logins import NoServiceError, broker_version
from tests.programs import program

SERVER_VARIABLE = "EVWORKER_TEST_RABBITMQ_SERVER"
"""Another command line that starts a server in the foreground, configured by RABBITMQ_… alone."""

START_TIMEOUT_S = 90.0

# The first is Debian's own script: the one on its PATH would change the user, and the folder.
_BINARIES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")


def server_command() -> list[str]:
    """What starts a server on this machine; a test is skipped or fails where there is none."""
    if named := os.environ.get(SERVER_VARIABLE):
        return shlex.split(named)
    return [program(*_BINARIES, instead=f"; {SERVER_VARIABLE} can name one")]


class Node:
    """One node, to be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self._command = server_command()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._distribution_port = free_port(), free_port()
        self._name = f"evwtest{uuid.uuid4().hex[:8]}@localhost"
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}/"

    @property
    def log(self) -> Path:
        return self._folder / "output"

    def start(self) -> None:
        """Start it, and wait until it lets clients in."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,  # it may leave dumps behind
                env={**os.environ, **self._settings()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its children can be killed with it
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                broker_version(self.url)
            except NoServiceError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"RabbitMQ did not start: {error}\n{self.log.read_text()[-4_000:]}"
                    ) from error
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """kill -9, as a crash or the kernel's memory killer would; a node that is down stays so."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def restart(self) -> None:
        """Kill it, and start it again."""
        await asyncio.to_thread(self.kill)
        await asyncio.to_thread(self.start)

    def remembers(self, queues: set[str]) -> bool:
        """Whether these quorum queues would outlive a kill -9.

        RabbitMQ registers a new one in a file that it writes with a delay of some seconds. Killed
        before, it has the queue but no leader for it, ever again: nothing that is sent there is
        confirmed. Measured with 3.10.8; no client can do anything about it.
        """
        files = self._folder.glob("mnesia/*/quorum/*/names.dets")
        written = b"".join(file.read_bytes() for file in files)
        return all(
            written.count(f"_{queue}".encode()) >= sum(name.startswith(queue) for name in queues)
            for queue in queues
        )

    def _settings(self) -> dict[str, str]:
        data = str(self._folder)
        return {
            "HOME": data,  # the Erlang cookie is in it
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": f"{data}/mnesia",
            "RABBITMQ_LOG_BASE": f"{data}/log",
            "RABBITMQ_PID_FILE": f"{data}/pid",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{data}/config",
            "RABBITMQ_SCHEMA_DIR": f"{data}/schema",
            "RABBITMQ_PLUGINS_EXPAND_DIR": f"{data}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{data}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/dev/null",
        }


def free_port() -> int:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port: int = placeholder.getsockname()[1]
        return port
