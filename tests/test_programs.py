"""What a machine has not got is skipped with the reason, and fails where nobody would read it."""

import sys
from pathlib import Path

import pytest

from tests.database_node import MariaNode, PostgresNode
from tests.programs import program
from tests.workers.rabbitmq_node import SERVER_VARIABLE, Node

NOWHERE = "/nowhere/no-such-program"


def test_the_first_that_is_there_is_taken() -> None:
    assert program(NOWHERE, sys.executable, NOWHERE) == sys.executable


def test_without_one_the_test_is_skipped_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no-such-program, which .* has not; buy one"):
        program(NOWHERE, instead="; buy one")


def test_without_one_the_test_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="runs no-such-program"):
        program(NOWHERE)


@pytest.mark.parametrize("ci", ["", "1"])
def test_every_server_of_a_test_is_looked_for_in_this_way(
    ci: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    monkeypatch.setattr("tests.programs.shutil.which", lambda _name: None)
    ended = pytest.fail.Exception if ci else pytest.skip.Exception
    for node in (PostgresNode, MariaNode, Node):
        with pytest.raises(ended, match="which this machine has not"):
            node(tmp_path)
