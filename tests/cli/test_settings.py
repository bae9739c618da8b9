"""Options from pyproject.toml and from the environment: which one holds, and what is refused."""

from __future__ import annotations

import pytest

from tests.cli.command import Command

# A URL with a wrong scheme is refused by its name: that says whose URL was taken.
FROM_FILE = "[tool.evworker]\nbroker-url = 'file://'\n"


async def test_the_nearest_pyproject_gives_defaults(evworker: Command) -> None:
    evworker.write("pyproject.toml", FROM_FILE)
    evworker.folder = evworker.folder / "below"
    evworker.folder.mkdir()
    assert "begins with 'file:" in (await evworker("tap")).error


async def test_the_environment_goes_before_the_file(evworker: Command) -> None:
    evworker.write("pyproject.toml", FROM_FILE)
    result = await evworker("tap", env={"EVWORKER_BROKER_URL": "environment://"})
    assert "begins with 'environment:" in result.error


async def test_the_command_line_goes_before_both(evworker: Command) -> None:
    evworker.write("pyproject.toml", FROM_FILE)
    result = await evworker("tap", "-b", "option://", env={"EVWORKER_BROKER_URL": "environment://"})
    assert "begins with 'option:" in result.error


async def test_a_table_of_a_verb_goes_before_the_shared_settings(evworker: Command) -> None:
    evworker.write("pyproject.toml", f"{FROM_FILE}[tool.evworker.tap]\nbroker_url = 'table://'\n")
    assert "begins with 'table:" in (await evworker("tap")).error
    assert "begins with 'file:" in (await evworker("dlq", "show", "q")).error


async def test_a_verb_below_a_group_has_a_table(evworker: Command) -> None:
    evworker.write("pyproject.toml", "[tool.evworker.dlq.show]\nlimit = 0\n")
    result = await evworker("dlq", "show", "q")
    assert result.code == 2
    assert "'--limit': 0 is not in the range" in result.error
    assert "[tool.evworker] of pyproject.toml" in result.error


@pytest.mark.parametrize("written", ["'one, two'", "['one', 'two']"])
async def test_app_may_be_text_or_a_list(written: str, evworker: Command) -> None:
    evworker.write("pyproject.toml", f"[tool.evworker]\napp = {written}\n")
    evworker.write("one.py", "from evworker.workers import Plugin\nplugin = Plugin('one')\n")
    result = await evworker("run")
    assert result.code == 3
    assert "there is no module 'two'" in result.error


async def test_every_option_has_a_variable(evworker: Command) -> None:
    result = await evworker("run", env={"EVWORKER_RUN_CONCURRENCY": "many"})
    assert result.code == 2
    assert "'many' is not a valid integer" in result.error
    assert "It comes from the environment." in result.error


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[tool.evworker]\nbroker_uri = 'x'", "'broker-uri' in [tool.evworker] of"),
        ("[tool.evworker]\nbroker_uri = 'x'", "; did you mean 'broker-url'?"),
        ("[tool.evworker.pubish]\nrate = 1", "'pubish' in [tool.evworker] of"),
        ("[tool.evworker.tap]\nlimt = 1", "'limt' in [tool.evworker.tap] of"),
        ("[tool.evworker.tap]\nlimt = 1", "; did you mean 'limit'?"),
        ("[tool.evworker]\ntap = 1", "unknown setting 'tap' in [tool.evworker] of"),
        ("[tool]\nevworker = 1", "must be a table: [tool.evworker]"),
        ("[tool.evworker", "can't read"),
    ],
)
async def test_what_no_verb_could_use_is_refused(
    settings: str, said: str, evworker: Command
) -> None:
    file = evworker.write("pyproject.toml", settings)
    result = await evworker("tap")
    assert result.code == 2
    assert said in result.error
    assert str(file) in result.error


async def test_an_unknown_verb_of_a_group_is_refused(evworker: Command) -> None:
    evworker.write("pyproject.toml", "[tool.evworker.dlq.shw]\nlimit = 1\n")
    result = await evworker("dlq", "show", "q")
    assert result.code == 2
    assert "'shw' in [tool.evworker.dlq] of" in result.error
