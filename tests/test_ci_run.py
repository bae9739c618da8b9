"""`.ci/run` runs once more what has failed, and names it at the end; `make` is played here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import program

ROOT = Path(__file__).resolve().parent.parent

# `make test` fails the tests that are listed in the file `first`, and when run again in `again`;
# or none of them and all the same, if there is a file `interrupted`. `make test-library` fails at
# first if there is a file `library`, which lists the tests.
MAKE = """#!/bin/sh
echo "$*" >> made
case "$*" in
  *soak) exit 0 ;;
  test-library) test -e library || exit 0; now=library ;;
  "test-library "*) now=none ;;
  test) now=first ;;
  "test "*) now=again ;;
  *) exit 0 ;;
esac
mkdir -p .pytest_cache/v/cache
cp "$now" .pytest_cache/v/cache/lastfailed
test "$(cat "$now")" = "{}" -a ! -e interrupted
"""


class Gate:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
        # With a python3 that has what it looks for, so that it installs nothing.
        python3 = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
        for name, script in (("make", MAKE), ("python3", python3)):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)

    def run(self, first: list[str], again: list[str]) -> subprocess.CompletedProcess[str]:
        """Run it, with tests that fail at first, and those among them that fail again."""
        for name, failing in (("first", first), ("again", again), ("none", [])):
            (self._folder / name).write_text(json.dumps(dict.fromkeys(failing, True)))
        return subprocess.run(
            [program("bash"), ".ci/run"],
            cwd=self._folder,
            env={**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def made(self) -> list[str]:
        return (self._folder / "made").read_text().splitlines()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_where_all_pass_nothing_is_run_again(gate: Gate) -> None:
    done = gate.run([], [])
    assert (done.returncode, done.stderr) == (0, "")
    assert gate.made[-1] == "test"


def test_what_passed_when_run_again_is_named_at_the_end(gate: Gate) -> None:
    done = gate.run(["tests/b.py::two[a b]", "tests/a.py::one"], [])
    assert done.returncode == 0
    assert done.stderr.endswith(
        "\nThese failed first and passed when run again:\n"
        "  tests/a.py::one\n"
        "  tests/b.py::two[a b]\n"
    )
    assert "--last-failed" in gate.made[-1]


def test_what_failed_twice_is_refused_and_named_apart(gate: Gate) -> None:
    done = gate.run(["tests/a.py::one", "tests/b.py::two"], ["tests/b.py::two"])
    assert done.returncode != 0
    assert done.stderr.endswith(
        "\nThese failed, and failed again:\n"
        "  tests/b.py::two\n"
        "\nThese failed first and passed when run again:\n"
        "  tests/a.py::one\n"
    )


def test_all_that_passed_when_run_again_is_named_at_the_end(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "library").write_text('{"tests/c.py::three": true}')
    done = gate.run(["tests/a.py::one"], [])
    assert done.returncode == 0
    assert done.stderr.endswith(
        "\nThese failed first and passed when run again:\n  tests/c.py::three\n  tests/a.py::one\n"
    )


def test_where_no_test_has_failed_there_is_nothing_to_run_again(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "interrupted").touch()
    done = gate.run([], [])
    assert done.returncode != 0
    assert done.stderr == "No test failed, but the tests could not be run to their end.\n"
    assert gate.made[-1] == "test"
