"""The embedded broker in a process of its own, for tests that would use a RabbitMQ otherwise.

Plain code and other processes talk to it as well as the test's event loop does. Each test process
has one, on a port that was free, and it ends with the process: it reads from it until nothing more
can come.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def embedded_url() -> str:
    """The URL of this process's own, which is started when it is first asked for."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.communicate)
    return process.stdout.readline().strip()


async def _serve() -> None:
    # Not needed by who only asks for services, before anything is installed.
    from evworker.broker.embedded import EmbeddedBroker  # noqa: PLC0415

    async with EmbeddedBroker(vhosts=["/"]) as broker:
        print(broker.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
