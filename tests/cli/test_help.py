"""What the command says of itself, and how little it needs for that."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module

import click
import pytest

from evworker.cli.main import VERBS
from tests.cli.command import Command

HEAVY = (
    "aio_pika",
    "aiormq",
    "evworker.broker",
    "evworker.workers",
    "msgspec",
    "rich",
    "structlog",
)

COMMANDS = {
    verb: getattr(import_module(module), attribute)
    for verb, (module, attribute, _) in VERBS.items()
}
COMMANDS |= {
    f"{group} {verb}": command
    for group, parent in COMMANDS.items()
    if isinstance(parent, click.Group)
    for verb, command in parent.commands.items()
}


async def test_help_lists_every_verb(evworker: Command) -> None:
    result = await evworker("--help")
    assert result.code == 0
    for verb, (_, _, line) in VERBS.items():
        assert f"  {verb}" in result.out
        assert line in result.out


async def test_help_imports_nothing_of_weight() -> None:
    script = (
        "import sys\n"
        "from evworker.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert err.decode().strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_and_every_option_is_explained(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_verb_shows_its_help(name: str, evworker: Command) -> None:
    result = await evworker(*name.split(), "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: evworker {name} ")
    assert "\\b" not in result.out


async def test_version(evworker: Command) -> None:
    result = await evworker("--version")
    assert result.code == 0
    assert result.out.startswith("evworker 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pubish"], "there is no verb 'pubish'; did you mean 'publish'? There are: run, publish"),
        (["dlq", "lst"], "there is no verb 'lst'; did you mean 'list'? There are: edit, "),
        (["--quiet"], "No such option '--quiet'"),
        (["run", "--concurency", "2"], "No such option '--concurency'"),
        (["run", "-c", "0"], "0 is not in the range x>=1"),
        (["run", "--shutdown-timeout", "5 minuets"], "can't read the duration '5 minuets'"),
        (["run", "--shutdown-timeout", "-1"], "'-1' is not a duration"),
        (["run"], "no plugins: name the modules that hold them"),
        (["dlq", "list"], "name the plugins with -A, or queues with --queue"),
        (["publish"], "name the TOPIC to publish to"),
        (["publish", "orders.placed", "--ndjson", "-", "--id", "7"], "leave out DATA, --id"),
        (["publish", "orders.placed", "--id", "7", "--count", "2"], "exclude each other"),
        (["publish", "orders.*"], "a topic has no wildcards"),
        (["publish", "orders..placed"], "an empty word"),
        (["tap", "orders.pl*"], "a wildcard must stand alone between dots"),
        (["tap", "-b", "amq://localhost"], "can't read the broker URL: it begins with 'amq:"),
    ],
)
async def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], said: str, evworker: Command
) -> None:
    result = await evworker(*arguments)
    assert said in result.error
    assert (result.code, result.out) == (2, "")


async def test_a_group_without_a_verb_shows_its_help(evworker: Command) -> None:
    result = await evworker("dlq")
    assert result.code == 2
    assert result.err.startswith("Usage: evworker dlq ")


async def test_no_broker_is_one_line_and_code_4(evworker: Command) -> None:
    result = await evworker("tap", "-b", "amqp://guest:secret@127.0.0.1:1/")
    assert result.code == 4
    assert "nothing listens on 127.0.0.1:1" in result.error
    assert "secret" not in result.err


async def test_a_wrong_password_is_one_line_and_code_4(evworker: Command, broker_url: str) -> None:
    result = await evworker("tap", "-b", broker_url.replace("guest:guest@", "guest:secret@"))
    assert result.code == 4
    assert "refused the login of" in result.error
    assert "secret" not in result.err
