"""The ground floor's front door: what is listed is what is there, and nothing else is."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import evworker.broker
from evworker.broker import errors


def test_what_is_exported_is_what_is_listed() -> None:
    for name in evworker.broker.__all__:
        getattr(evworker.broker, name)  # what needs a database is there from then on
    public = {
        name
        for name, value in vars(evworker.broker).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and name not in {"annotations", "TYPE_CHECKING"}
    }
    assert public == set(evworker.broker.__all__)
    assert len(evworker.broker.__all__) == len(set(evworker.broker.__all__))


def test_every_error_can_be_caught_by_a_user() -> None:
    own = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and kind.__module__ == errors.__name__
    }
    assert own <= set(evworker.broker.__all__)


def test_everything_public_says_what_it_is() -> None:
    undocumented = [
        name
        for name in evworker.broker.__all__
        if name != "Duration"  # an alias: its words stand beside it
        and not inspect.getdoc(getattr(evworker.broker, name))
    ]
    assert not undocumented


def test_a_producer_loads_no_other_floor_and_no_command() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, evworker.broker; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "evworker.broker.publisher" in loaded
    assert not {"evworker.workers", "evworker.cli", "click", "sqlalchemy"} & set(loaded)


def test_what_is_not_there_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Inbok'"):
        _ = evworker.broker.Inbok  # type: ignore[attr-defined]


def test_what_needs_a_database_says_what_to_install() -> None:
    without = "import sys; sys.modules['sqlalchemy'] = None; from evworker.broker import Outbox"
    failed = subprocess.run(
        [sys.executable, "-c", without], check=False, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "Outbox needs SQLAlchemy" in failed.stderr
    assert "pip install 'evworker[postgres]'" in failed.stderr


@pytest.mark.parametrize(
    "program",
    [
        "import evworker.workers",
        "from evworker.broker import Publisher, Event; from evworker.workers import Plugin, Worker",
        "from evworker.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from evworker.cli.main import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_without_a_database_nothing_of_one_is_loaded(program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(ended.stderr.split())
    assert any(name.startswith("evworker.") for name in loaded)
    assert not {"sqlalchemy", "asyncpg", "aiomysql", "aiosqlite", "psycopg"} & loaded
    assert not {name for name in loaded if name.startswith("evworker.broker.outbox")}
