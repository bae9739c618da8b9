"""An environment for each peer, and the C client: made once, kept in benchmarks/.environments.

Each holds what PACKAGES says, in the versions of peers.txt, and nothing else: a peer is measured
with the packages that it would have by itself. The project's own environment runs evworker.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ENVIRONMENTS = FOLDER / ".environments"
VERSIONS = FOLDER / "peers.txt"

PACKAGES: dict[str, tuple[str, ...]] = {
    "aio-pika": ("aio-pika", "msgspec", "uvloop"),
    "celery": ("celery",),
    "chart": ("matplotlib",),
    "dramatiq": ("dramatiq[rabbitmq]",),
    "faststream": ("faststream[cli,rabbit]",),
    "faststream-uvloop": ("faststream[cli,rabbit]", "fast-depends[msgspec]", "uvloop"),
    "pika": ("pika", "msgspec"),
    "taskiq": ("taskiq", "taskiq-aio-pika"),
    "taskiq-uvloop": ("taskiq", "taskiq-aio-pika", "uvloop"),
}

_DEBIAN_PACKAGES = ("gcc", "libc6-dev", "librabbitmq-dev")
_COMMAND_S = 600.0


class NotMadeError(Exception):
    """An environment can't be made; who needs it is left out."""


def program_of(environment: str | None) -> dict[str, str]:
    """What a contestant of this environment is started with, made if it is not there yet.

    Raises NotMadeError.
    """
    if environment is None:
        return {"python": sys.executable}
    if environment == "limit":
        return {"limit": str(_limit())}
    return {"python": str(python_of(environment))}


def python_of(environment: str) -> Path:
    """The interpreter of an environment. Raises NotMadeError."""
    folder = ENVIRONMENTS / environment
    python, stamp = folder / "bin" / "python", folder / "made-of"
    wanted = " ".join(PACKAGES[environment]) + "\n" + VERSIONS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _say(f"making the environment of {environment}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        _run([*pip, "--constraint", str(VERSIONS), *PACKAGES[environment]])
    except NotMadeError as error:
        raise NotMadeError(f"its packages can't be installed: {error}") from error
    stamp.write_text(wanted, encoding="utf-8")
    return python


def versions_of(environment: str) -> dict[str, str]:
    """What of PACKAGES is in it."""
    names = {package.partition("[")[0] for package in PACKAGES[environment]}
    pins = (line.split("==") for line in VERSIONS.read_text(encoding="utf-8").splitlines())
    return {pin[0]: pin[1] for pin in pins if pin[0] in names}


def _limit() -> Path:
    source, program = FOLDER / "limit.c", ENVIRONMENTS / "limit"
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    _say("compiling the C client")
    ENVIRONMENTS.mkdir(exist_ok=True)
    command = ["gcc", "-O2", "-Wall", "-o", str(program), str(source), "-lrabbitmq"]
    try:
        _run(command)
    except NotMadeError as error:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise NotMadeError(
                f"the C client can't be compiled ({error}); "
                f"it needs {', '.join(_DEBIAN_PACKAGES)}, as Debian calls them"
            ) from error
        _install_with_apt()
        _run(command)
    return program


def _install_with_apt() -> None:
    _say(f"installing {', '.join(_DEBIAN_PACKAGES)}")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *_DEBIAN_PACKAGES]
    try:
        _run(install)
    except NotMadeError:
        _run(["apt-get", "update"])
        _run(install)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMadeError(str(error)) from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["it does not say why"]
        raise NotMadeError(f"{command[0]}: {lines[-1]}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
