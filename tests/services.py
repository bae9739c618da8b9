"""Find the services that the tests and the demo talk to, and start them where none runs.

    python -m tests.services --need broker
    python -m tests.services --need broker,database,mysql

Prints one `KEY='value'` line a service, for a shell to evaluate, on stdout. What it did goes to
stderr. Exits 1 with one sentence if a service can be neither found nor started.

Looked for in this order, and the first that answers is taken:

1. the URLs in EVWORKER_TEST_BROKER_URL (one or several, between commas or spaces),
   EVWORKER_TEST_DATABASE_URL (PostgreSQL) and EVWORKER_TEST_MYSQL_URL (MariaDB or MySQL); a URL
   that is set and does not answer is an error; for the broker `embedded`, which needs no server
2. the standard local ports, 5672, 5432 and 3306
3. `docker compose up --wait`, if a Docker engine is running
4. the distribution's packages, as root on Debian and its kin

"Answers" means a whole login, not an open port. Standard library only, because this runs before
anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.embedded_broker import embedded_url
from tests.logins import (
    NoServiceError,
    NotListeningError,
    address,
    broker_version,
    database_answers,
    mysql_version,
)

BROKER_VARIABLE = "EVWORKER_TEST_BROKER_URL"
DATABASE_VARIABLE = "EVWORKER_TEST_DATABASE_URL"
MYSQL_VARIABLE = "EVWORKER_TEST_MYSQL_URL"

EMBEDDED = "embedded"
"""In EVWORKER_TEST_BROKER_URL instead of URLs: each process of tests has a broker of its own."""

LOCAL_BROKER = "amqp://guest:guest@127.0.0.1:5672/"
# The first is what this script and docker-compose.yml set up, the second what a machine may have.
LOCAL_DATABASES = (
    "postgresql://evworker@127.0.0.1:5432/evworker",
    "postgresql://postgres@127.0.0.1:5432/postgres",
)
LOCAL_MYSQLS = ("mysql://root@127.0.0.1:3306", "mysql://evworker@127.0.0.1:3306")

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
INSTALL_TIMEOUT_S = 900.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Find or start the services that tests need.")
    parser.add_argument("--need", default="broker", help="broker, or broker,database,mysql")
    needed = parser.parse_args(arguments).need.split(",")
    if unknown := set(needed) - FINDERS.keys():
        known = ", ".join(FINDERS)
        parser.error(f"no such service: {', '.join(sorted(unknown))}; there are {known}")
    try:
        for service in needed:
            variable, find = FINDERS[service]
            print(f"{variable}={shlex.quote(find())}")
    except NoServiceError as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Finding


def broker_urls() -> list[str]:
    """The brokers named in the environment, or else the standard local one."""
    if on_embedded():
        return [embedded_url()]
    named = os.environ.get(BROKER_VARIABLE, "").replace(",", " ").split()
    return named or [LOCAL_BROKER]


def on_embedded() -> bool:
    """Whether the environment asks for the embedded broker."""
    return os.environ.get(BROKER_VARIABLE, "").strip() == EMBEDDED


def find_broker() -> str:
    if on_embedded():
        say(f"broker: the embedded one, from {BROKER_VARIABLE}")
        return EMBEDDED
    if os.environ.get(BROKER_VARIABLE, "").strip():
        for url in broker_urls():
            try:
                version = broker_version(url)
            except NoServiceError as error:
                raise NoServiceError(f"{BROKER_VARIABLE} is set, but {error}.") from error
            say(f"broker: RabbitMQ {version} at {address(url)}, from {BROKER_VARIABLE}")
        return " ".join(broker_urls())
    version = find_or_start("RabbitMQ", "broker", local_broker_version, start_debian_rabbitmq)
    say(f"broker: RabbitMQ {version} at {address(LOCAL_BROKER)}")
    return LOCAL_BROKER


def database_url() -> str:
    """The PostgreSQL named in the environment, or else the local one; raises NoServiceError."""
    return os.environ.get(DATABASE_VARIABLE, "").strip() or local_database()


def mysql_url() -> str:
    """The MariaDB or MySQL named in the environment, or else the local one."""
    return os.environ.get(MYSQL_VARIABLE, "").strip() or local_mysql()


def find_database() -> str:
    if url := os.environ.get(DATABASE_VARIABLE, "").strip():
        try:
            database_answers(url)
        except NoServiceError as error:
            raise NoServiceError(f"{DATABASE_VARIABLE} is set, but {error}.") from error
        say(f"database: PostgreSQL at {address(url)}, from {DATABASE_VARIABLE}")
        return url
    url = find_or_start("PostgreSQL", "database", local_database, start_debian_postgresql)
    say(f"database: PostgreSQL at {address(url)}")
    return url


def find_mysql() -> str:
    if url := os.environ.get(MYSQL_VARIABLE, "").strip():
        try:
            version = mysql_version(url)
        except NoServiceError as error:
            raise NoServiceError(f"{MYSQL_VARIABLE} is set, but {error}.") from error
        say(f"mysql: {version} at {address(url)}, from {MYSQL_VARIABLE}")
        return url
    url = find_or_start("MariaDB", "mysql", local_mysql, start_debian_mariadb)
    say(f"mysql: {mysql_version(url)} at {address(url)}")
    return url


FINDERS: dict[str, tuple[str, Callable[[], str]]] = {
    "broker": (BROKER_VARIABLE, find_broker),
    "database": (DATABASE_VARIABLE, find_database),
    "mysql": (MYSQL_VARIABLE, find_mysql),
}


def find_or_start(
    name: str, service: str, local: Callable[[], str], start_package: Callable[[], None]
) -> str:
    """What `local` says of the service on its standard port, which is started if need be.

    Raises NoServiceError naming everything that was tried.
    """
    variable = FINDERS[service][0]
    try:
        return local()
    except NotListeningError as error:
        tried = [str(error)]
    except NoServiceError as error:
        # The port is taken by something else, so nothing can be started on it.
        raise NoServiceError(f"{error}; set {variable} to a {name} that tests may use.") from error
    for start in (functools.partial(start_container, service), start_package):
        try:
            start()
            return wait_for(local)
        except NoServiceError as error:
            tried.append(str(error))
    raise NoServiceError(
        f"No {name} for the tests: {'; '.join(tried)}. Start one, or set {variable} to its URL."
    )


def local_broker_version() -> str:
    return broker_version(LOCAL_BROKER)


def local_database() -> str:
    return first_that_answers(LOCAL_DATABASES, database_answers)


def local_mysql() -> str:
    return first_that_answers(LOCAL_MYSQLS, mysql_version)


def first_that_answers(urls: Sequence[str], ask: Callable[[str], object]) -> str:
    reason: NoServiceError | None = None
    for url in urls:
        try:
            ask(url)
        except NotListeningError:
            raise
        except NoServiceError as error:
            reason = reason or error
        else:
            return url
    raise reason or NoServiceError("no local database is known")


def wait_for(local: Callable[[], str]) -> str:
    """What `local` returns once the service has finished starting."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return local()
        except NoServiceError as error:
            if time.monotonic() > deadline:
                raise NoServiceError(f"started, but {error} after {START_TIMEOUT_S:.0f} s") from (
                    error
                )
        time.sleep(0.3)


# Starting


def run(*command: str, timeout_s: float, env: dict[str, str] | None = None) -> None:
    """Run a command with its output on stderr; a failure is a NoServiceError."""
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=timeout_s,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
    except subprocess.CalledProcessError as error:
        status = error.returncode
        raise NoServiceError(f"`{shlex.join(command)}` failed with status {status}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoServiceError(f"`{shlex.join(command)}` failed: {error}") from error


def succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    quiet = subprocess.DEVNULL
    result = subprocess.run(command, check=False, stdin=quiet, stdout=quiet, stderr=quiet)
    return result.returncode == 0


def start_container(service: str) -> None:
    if not succeeds("docker", "info"):
        raise NoServiceError("no Docker engine is running")
    if not succeeds("docker", "compose", "version"):
        raise NoServiceError("this docker has no `docker compose`")
    say(f"{service}: starting a container")
    run("docker", "compose", "up", "--detach", "--wait", service, timeout_s=INSTALL_TIMEOUT_S)


def install(program: str, package: str) -> None:
    """Have the distribution's package on this machine, as root on Debian and its kin."""
    if shutil.which(program):
        return
    say(f"{package}: installing the distribution's package, which takes a minute")
    # An index that cannot be refreshed may still hold the package, so only the install may fail.
    with contextlib.suppress(NoServiceError):
        run("apt-get", "update", "-qq", timeout_s=INSTALL_TIMEOUT_S)
    quietly = {"DEBIAN_FRONTEND": "noninteractive"}
    patiently = ("-o", "DPkg::Lock::Timeout=300")  # a new machine may be updating itself
    command = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *patiently, package)
    run(*command, timeout_s=INSTALL_TIMEOUT_S, env=quietly)


def require_root_on_debian() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoServiceError("packages can be installed only by root on Debian")


def start_debian_rabbitmq() -> None:
    require_root_on_debian()
    install("rabbitmq-server", "rabbitmq-server")
    with contextlib.suppress(NoServiceError):
        broker_version(LOCAL_BROKER)  # where there is an init system, installing has started it
        return
    run("rabbitmq-server", "-detached", timeout_s=START_TIMEOUT_S)


def start_debian_postgresql() -> None:
    """A cluster in which the role `evworker` may log in from 127.0.0.1 and make databases."""
    require_root_on_debian()
    install("pg_ctlcluster", "postgresql")
    clusters = sorted(Path("/etc/postgresql").glob("*/main"))
    if not clusters:
        raise NoServiceError("PostgreSQL is installed without a cluster called main")
    newest = clusters[-1]
    rules = newest / "pg_hba.conf"
    allow = "host all evworker 127.0.0.1/32 trust\n"
    if allow not in rules.read_text():
        rules.write_text(allow + rules.read_text())
    control = ("pg_ctlcluster", "--skip-systemctl-redirect", newest.parent.name, "main")
    if not succeeds(*control, "status"):
        run(*control, "start", timeout_s=START_TIMEOUT_S)
    else:
        run(*control, "reload", timeout_s=START_TIMEOUT_S)
    as_owner = ("su", "postgres", "-c")
    if not succeeds(*as_owner, "psql -Atc 'SELECT 1' -d evworker"):
        sql = "CREATE ROLE evworker LOGIN CREATEDB"
        run(*as_owner, f"psql -qc '{sql}'", timeout_s=START_TIMEOUT_S)
        run(*as_owner, "createdb -O evworker evworker", timeout_s=START_TIMEOUT_S)


def start_debian_mariadb() -> None:
    """A server in which the user `evworker` may log in from this machine and make databases."""
    require_root_on_debian()
    install("mariadbd", "mariadb-server")
    as_root = ("mariadb", "--user=root", "--protocol=socket", "--execute")
    if not succeeds(*as_root, "SELECT 1"):
        run("service", "mariadb", "start", timeout_s=START_TIMEOUT_S)
    for host in ("localhost", "127.0.0.1"):
        user = f"'evworker'@'{host}'"
        run(*as_root, f"CREATE USER IF NOT EXISTS {user}", timeout_s=START_TIMEOUT_S)
        run(*as_root, f"GRANT ALL ON *.* TO {user}", timeout_s=START_TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
