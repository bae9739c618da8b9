"""Where and with what a run was made: half of what its numbers mean."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from benchmarks.environments import PACKAGES, versions_of

_OURS = ("evworker", "aio-pika", "aiormq", "pamqp", "msgspec", "SQLAlchemy", "asyncpg")


def describe_machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def describe_versions(environments: Iterable[str | None]) -> dict[str, str]:
    """Of evworker, what it stands on, and of each peer that is measured."""
    versions = {name: version(name) for name in _OURS}
    for environment in environments:
        if environment == "limit":
            versions["librabbitmq"] = _output("pkg-config", "--modversion", "librabbitmq")
        elif environment in PACKAGES:
            versions |= versions_of(environment)
    return versions | {"commit": _output("git", "describe", "--always", "--dirty")}


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
