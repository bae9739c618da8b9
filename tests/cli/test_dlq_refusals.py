"""`evworker dlq`: what can't be meant is refused before a broker is asked, with what to type."""

from __future__ import annotations

import pytest

from tests.cli.command import Command


@pytest.fixture(autouse=True)
def no_broker(evworker: Command) -> None:
    evworker.environment["EVWORKER_BROKER_URL"] = "amqp://127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("show", "q", "--where", "total"), "can't read the condition 'total'; write for example"),
        (("groups", "q", "--since", "yesterday"), "can't read the time 'yesterday'; write for"),
        (("replay", "q", "--reason", "crashd"), "no reason 'crashd'; did you mean 'crashed'?"),
        (("purge", "q", "--yes", "--topic", "a..b"), "the topic pattern 'a..b' has an empty word"),
        (("replay", "q", "--rate", "0"), "Invalid value for '--rate'"),
        (("replay", "q", "--rate", "nan"), "Invalid value for '--rate'"),
        (("export", "q", "--limit", "0"), "Invalid value for '--limit'"),
        (
            ("replay", "q", "--to", "q.dlq"),
            "the letters of q.dlq are there already: name another queue",
        ),
        (("replay", "events.unrouted"), "never failed on a queue: name one with --to"),
        (("edit", "events.unrouted", "a"), "never failed on a queue: name one with --to"),
        (("export", "q", "--remove"), "--remove needs a file: name one with --output"),
        (("export", "q", "--remove", "-o", "letters"), "add --yes, or look first with --dry-run"),
        (("export", "q", "--json"), "--json goes with --output"),
        (("import", "q", "nothing"), "can't read 'nothing': No such file"),
        (("import", "q", "."), "can't read '.': it is a directory"),
        (("edit", "q"), "Missing argument 'ID'"),
        (("list",), "name the plugins with -A, or queues with --queue"),
        (("lst",), "there is no verb 'lst'; did you mean 'list'?"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
async def test_wrong_input_is_refused_before_a_broker_is_asked(
    arguments: tuple[str, ...], why: str, evworker: Command
) -> None:
    refused = await evworker("dlq", *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert why in refused.error


async def test_a_broker_that_is_away_is_told(evworker: Command) -> None:
    refused = await evworker("dlq", "purge", "q", "--yes")
    assert refused.code == 4
    assert refused.error == "nothing listens on 127.0.0.1:1; is RabbitMQ running there?"
