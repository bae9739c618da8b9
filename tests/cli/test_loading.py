"""Plugins by name: how they may be named, and what is said of a name that is wrong."""

from __future__ import annotations

import pytest

from tests.cli.command import Command
from tests.cli.conftest import Exchange

PLUGIN = """
    from evworker.broker import Event
    from evworker.workers import Plugin

    class Placed(Event, topic="orders.placed"):
        pass

    def make(name):
        plugin = Plugin(name)
        @plugin.consumer(Placed, queue=f"{name}.queue")
        async def handle(event, ctx): ...
        return plugin

    plugin = make("alpha")
    several = [plugin, make("beta")]
    def factory(): return make("gamma")
    def broken(): return 1 / 0
    number = 7
"""


@pytest.mark.parametrize(
    ("named", "queues"),
    [
        (["shop.plugins"], {"alpha"}),
        (["shop.plugins:plugin"], {"alpha"}),
        (["shop.plugins:several"], {"alpha", "beta"}),
        (["shop.plugins:factory"], {"gamma"}),
        (["shop.plugins", "-A", "shop.plugins:several"], {"alpha", "beta"}),
        (["shop.plugins,shop.plugins:factory"], {"alpha", "gamma"}),
    ],
)
async def test_the_ways_to_name_plugins(
    named: list[str], queues: set[str], evworker: Command, exchange: Exchange
) -> None:
    evworker.write("shop/plugins.py", PLUGIN)
    shown = await evworker("topology", "show", "-A", *named, "--json")
    names = {thing["name"] for thing in shown.json if thing["kind"] == "binding"}
    assert {name.removesuffix(".queue") for name in names if name.endswith(".queue")} == queues


async def test_installed_packages_bring_plugins(evworker: Command, exchange: Exchange) -> None:
    evworker.write("shop/plugins.py", PLUGIN)
    evworker.write("shop-1.0.dist-info/METADATA", "Name: shop\nVersion: 1.0\n")
    evworker.write(
        "shop-1.0.dist-info/entry_points.txt",
        "[evworker.plugins]\nbeta = shop.plugins:factory\n",
    )
    shown = await evworker("topology", "show", "--json")
    assert "gamma.queue" in {thing["name"] for thing in shown.json}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop.plugin", "there is no module 'shop.plugin' in 'shop'; did you mean 'shop.plugins'?"),
        ("shopp.plugins", "there is no module 'shopp'"),
        ("shopp.plugins", "; did you mean 'shop'?"),
        ("shop/plugins.py", "is not the name of a module; did you mean 'shop.plugins'?"),
        ("shop", "there is no plugin in 'shop'; name one of its modules: shop."),
        ("shop.empty", "there is no plugin in 'shop.empty'; make one there"),
        ("shop.plugins:plugn", "'shop.plugins' has no 'plugn'; did you mean 'plugin'?"),
        ("shop.plugins:number", "is of type int; expected a Plugin, several Plugins, or"),
        ("shop.plugins:broken", "failed: ZeroDivisionError: division by zero (FOLDER/plugins.py"),
        ("shop.raises", "ZeroDivisionError: division by zero (FOLDER/raises.py, line 2)"),
        ("shop.misspelt", "SyntaxError: '(' was never closed (FOLDER/misspelt.py, line 2)"),
        ("shop.exits", "SystemExit: 3 (FOLDER/exits.py, line 1)"),
        ("shop.lacks", "No module named 'no_such_library' (FOLDER/lacks.py, line 3)"),
        ("shop.topic", "InvalidTopicError: the topic 'orders..x' has an empty word"),
        ("shop.topic", "(FOLDER/topic.py, line 2)"),
        ("shop.twice", "ConsumerError: two consumers are named 'twice.handle'"),
    ],
)
async def test_a_wrong_name_is_one_line_and_code_3(name: str, said: str, evworker: Command) -> None:
    evworker.write("shop/plugins.py", PLUGIN)
    evworker.write("shop/empty.py", "")
    evworker.write("shop/raises.py", "def half(n):\n    return n / 0\nhalf(1)\n")
    evworker.write("shop/misspelt.py", "\nprint(\n")
    evworker.write("shop/exits.py", "raise SystemExit(3)\n")
    evworker.write("shop/lacks.py", "\n\nimport no_such_library\n")
    evworker.write(
        "shop/topic.py",
        "from evworker.broker import Event\nclass X(Event, topic='orders..x'): ...\n",
    )
    evworker.write(
        "shop/twice.py",
        """
        from evworker.workers import Plugin
        twice = Plugin("twice")
        for queue in "ab":
            @twice.consumer("orders.*", queue=queue)
            async def handle(event, ctx): ...
        """,
    )
    result = await evworker("run", name)
    assert said.replace("FOLDER", str(evworker.folder / "shop")) in result.error
    assert (result.code, result.out) == (3, "")


async def test_plugins_that_contradict_each_other_are_told(evworker: Command) -> None:
    evworker.write("shop/plugins.py", PLUGIN)
    evworker.write("shop/more.py", PLUGIN)
    result = await evworker("run", "shop.plugins", "shop.more")
    assert result.code == 2
    assert result.error == "two plugins are named 'alpha'; rename one of them"


async def test_a_queue_that_no_consumer_has_is_told(evworker: Command) -> None:
    evworker.write("shop/plugins.py", PLUGIN)
    result = await evworker("run", "shop.plugins", "-Q", "betta")
    assert result.code == 2
    assert result.error == "no consumer has a queue 'betta'; there are alpha.queue"
