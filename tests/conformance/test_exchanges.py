"""Exchanges: declared, bound, and the ways that messages take through them."""

from __future__ import annotations

from typing import Any

import pytest
from pamqp.base import Frame
from pamqp.commands import Basic, Exchange, Queue

from tests.conformance.client import Channel, Link, RefusedError
from tests.conformance.conftest import New, Target


async def test_direct(ch: Channel, new: New) -> None:
    x, one, two = new("x"), new("one"), new("two")
    await ch.exchange(x)
    for queue, key in ((one, "a"), (two, "a"), (two, "b")):
        await ch.declare(queue)
        await ch.bind(queue, x, key)
    for key in ("a", "b", "c"):
        await ch.put(key, key, exchange=x)
    assert (await ch.take(one), await ch.take(two)) == (["a"], ["a", "b"])


async def test_fanout_gives_each_queue_one(ch: Channel, new: New) -> None:
    x, one, two = new("x"), new("one"), new("two")
    await ch.exchange(x, "fanout")
    for queue, key in ((one, "a"), (one, "b"), (two, "")):
        await ch.declare(queue)
        await ch.bind(queue, x, key)
    await ch.put("whatever", "m", exchange=x)
    assert (await ch.take(one), await ch.take(two)) == (["m"], ["m"])


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("a.b", ["a.b"]),
        ("a.*", ["a.b", "a."]),
        ("*", ["a"]),
        ("#", ["", "a", "a.b", "a.", "a.b.c"]),
        ("a.#", ["a", "a.b", "a.", "a.b.c"]),
        ("#.c", ["a.b.c"]),
        ("a.#.c", ["a.b.c"]),
        ("#.b.#", ["a.b", "a.b.c"]),
        ("*.*", ["a.b", "a."]),
        ("#.*", ["a", "a.b", "a.", "a.b.c"]),
    ],
)
async def test_topic(ch: Channel, new: New, pattern: str, matched: list[str]) -> None:
    x, queue = new("x"), new("q")
    await ch.exchange(x, "topic")
    await ch.declare(queue)
    await ch.bind(queue, x, pattern)
    for key in ("", "a", "a.b", "a.", "a.b.c"):
        await ch.put(key, key, exchange=x)
    assert await ch.take(queue) == matched


SENT: list[dict[str, Any]] = [
    {"a": 1, "b": "x"},
    {"a": 1},
    {"b": "x"},
    {},
    {"a": 2},
    {"x-k": 1},
    {"x-k": 2},
    {"a": True},
    {"a": "1"},
]


@pytest.mark.parametrize(
    ("arguments", "matched"),
    [
        ({"x-match": "all", "a": 1, "b": "x"}, [0]),
        ({"x-match": "any", "a": 1, "b": "x"}, [0, 1, 2]),
        ({"a": 1}, [0, 1]),
        ({"x-match": "all", "x-k": 1}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"x-match": "all-with-x", "x-k": 1}, [5]),
        ({"x-match": "any-with-x", "x-k": 1, "b": "x"}, [0, 2, 5]),
        ({"a": None}, [0, 1, 4, 7, 8]),
    ],
)
async def test_headers(
    ch: Channel, new: New, arguments: dict[str, Any], matched: list[int]
) -> None:
    x, queue = new("x"), new("q")
    await ch.exchange(x, "headers")
    await ch.declare(queue)
    await ch.bind(queue, x, "", **arguments)
    for number, headers in enumerate(SENT):
        await ch.put("", str(number), exchange=x, headers=headers)
    assert await ch.take(queue) == [str(number) for number in matched]


async def test_a_way_to_match_headers_that_there_is_not(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    refusal = await ch.refuses(
        Queue.Bind(queue=queue, exchange="amq.headers", arguments={"x-match": "some"})
    )
    assert (refusal.scope, refusal.code) == ("channel", 406)


async def test_the_default_exchange_knows_each_queue_by_its_name(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    await ch.put(queue, "m")
    await ch.put(new("none"), "nobody's")
    assert await ch.take(queue) == ["m"]


async def test_an_exchange_bound_to_another(ch: Channel, new: New) -> None:
    first, second, queue = new("first"), new("second"), new("q")
    await ch.exchange(first, "topic")
    await ch.exchange(second, "direct")
    await ch.declare(queue)
    await ch.bind(queue, second, "a.b")
    await ch.call(Exchange.Bind(destination=second, source=first, routing_key="a.*"))
    await ch.call(Exchange.Bind(destination=first, source=second, routing_key="a.b"))  # a circle
    await ch.put("a.b", "m", exchange=first)
    assert await ch.take(queue) == ["m"]
    await ch.call(Exchange.Unbind(destination=second, source=first, routing_key="a.*"))
    await ch.put("a.b", "m", exchange=first)
    assert await ch.take(queue) == []


async def test_what_nobody_is_bound_to_goes_to_the_alternate_exchange(
    ch: Channel, new: New
) -> None:
    x, other, bound, rest = new("x"), new("other"), new("bound"), new("rest")
    await ch.exchange(x, "topic", arguments={"alternate-exchange": other})
    await ch.exchange(other, "fanout")
    for queue in (bound, rest):
        await ch.declare(queue)
    await ch.bind(bound, x, "a")
    await ch.bind(rest, other)
    await ch.put("a", "routed", exchange=x)
    await ch.put("b", "unrouted", exchange=x, mandatory=True)
    assert (await ch.take(bound), await ch.take(rest)) == (["routed"], ["unrouted"])
    assert ch.returned.empty()


async def test_an_alternate_exchange_that_is_missing_loses_it(ch: Channel, new: New) -> None:
    x = new("x")
    await ch.exchange(x, arguments={"alternate-exchange": new("none")})
    await ch.put("a", "lost", exchange=x)


async def test_unbound_and_deleted_queues_get_nothing(ch: Channel, new: New) -> None:
    x, one, two = new("x"), new("one"), new("two")
    await ch.exchange(x, "fanout")
    for queue in (one, two):
        await ch.declare(queue)
        await ch.bind(queue, x, "k")
    await ch.call(Queue.Unbind(queue=one, exchange=x, routing_key="k"))
    await ch.call(Queue.Delete(queue=two))
    await ch.declare(two)
    await ch.put("k", "m", exchange=x)
    assert (await ch.take(one), await ch.take(two)) == ([], [])


async def test_what_is_bound_twice_is_bound_once(ch: Channel, new: New) -> None:
    x, queue = new("x"), new("q")
    await ch.exchange(x)
    await ch.declare(queue)
    for _ in range(2):
        await ch.bind(queue, x, "k")
    await ch.put("k", "one", exchange=x)
    assert await ch.take(queue) == ["one"]
    await ch.call(Queue.Unbind(queue=queue, exchange=x, routing_key="k"))
    await ch.put("k", "none", exchange=x)
    assert await ch.take(queue) == []


async def test_what_is_not_there_can_be_unbound_and_deleted(ch: Channel, new: New) -> None:
    await ch.call(Exchange.Delete(exchange=new("x")))
    await ch.call(Queue.Unbind(queue=new("q"), exchange="amq.topic"))


async def test_an_exchange_is_declared_again_only_as_it_is(link: Link, new: New) -> None:
    x = new("x")
    declared: dict[str, Any] = {"durable": True, "arguments": {"alternate-exchange": "a"}}
    await (await link.channel()).exchange(x, "topic", **declared)
    await (await link.channel()).exchange(x, "topic", **declared)
    for kind, changed, told in (
        ("fanout", {}, "arg 'type' for exchange '{}' in vhost '/': received 'fanout' but current"),
        ("topic", {"durable": False}, "arg 'durable' for exchange '{}' in vhost '/': received"),
        ("topic", {"auto_delete": True}, "arg 'auto_delete' for exchange '{}' in vhost '/'"),
        ("topic", {"internal": True}, "arg 'internal' for exchange '{}' in vhost '/'"),
        (
            "topic",
            {"arguments": {"alternate-exchange": "b"}},
            "arg 'alternate-exchange' for exchange '{}' in vhost '/'",
        ),
    ):
        with pytest.raises(RefusedError, match=r"channel 406 .*inequivalent") as refused:
            await (await link.channel()).exchange(x, kind, **{**declared, **changed})
        assert told.format(x) in refused.value.text


async def test_passive_only_asks(ch: Channel, new: New) -> None:
    await ch.exchange("amq.topic", passive=True)
    refusal = await ch.refuses(Exchange.Declare(exchange=new("x"), passive=True))
    assert (refusal.scope, refusal.code) == ("channel", 404)


async def test_an_unknown_type(target: Target, ch: Channel, new: New) -> None:
    refusal = await ch.refuses(Exchange.Declare(exchange=new("x"), exchange_type="nope"))
    expected = ("channel", 406) if target.is_4 else ("connection", 503)
    assert (refusal.scope, refusal.code) == expected
    assert refusal.text.endswith("unknown exchange type 'nope'")


@pytest.mark.parametrize(
    "method",
    [
        Exchange.Declare(exchange="amq.mine"),
        Exchange.Declare(exchange=""),
        Exchange.Delete(exchange=""),
        Exchange.Delete(exchange="amq.topic"),
        Exchange.Bind(destination="amq.topic", source=""),
        Exchange.Bind(destination="", source="amq.topic"),
        Exchange.Unbind(destination="amq.topic", source=""),
        Exchange.Unbind(destination="", source="amq.topic"),
        Queue.Bind(queue="there is none", exchange=""),
        Queue.Unbind(queue="there is none", exchange=""),
    ],
    ids=[
        *("reserved name", "default", "delete default", "delete a system's", "bind default"),
        *("bind to default", "unbind default", "unbind from default", "bind a queue"),
        "unbind a queue",
    ],
)
async def test_what_belongs_to_the_broker(ch: Channel, method: Frame) -> None:
    refusal = await ch.refuses(method)
    assert (refusal.scope, refusal.code) == ("channel", 403)


async def test_nothing_binds_to_the_default_exchange(ch: Channel, new: New) -> None:
    queue = new("q")
    await ch.declare(queue)
    assert (await ch.refuses(Queue.Bind(queue=queue, exchange=""))).code == 403


@pytest.mark.parametrize("missing", ["queue", "exchange"])
async def test_binding_what_is_missing(ch: Channel, new: New, missing: str) -> None:
    queue = new("q")
    await ch.declare(queue)
    method = (
        Queue.Bind(queue=new("none"), exchange="amq.topic")
        if missing == "queue"
        else Queue.Bind(queue=queue, exchange=new("none"))
    )
    refusal = await ch.refuses(method)
    assert (refusal.scope, refusal.code) == ("channel", 404)
    assert refusal.text.startswith(f"NOT_FOUND - no {missing} '")


async def test_an_exchange_in_use_is_not_deleted_if_unused(ch: Channel, new: New) -> None:
    x, queue = new("x"), new("q")
    await ch.exchange(x)
    await ch.declare(queue)
    await ch.bind(queue, x, "k")
    refusal = await ch.refuses(Exchange.Delete(exchange=x, if_unused=True))
    assert (refusal.scope, refusal.code) == ("channel", 406)


async def test_auto_delete_goes_with_the_last_binding(ch: Channel, new: New) -> None:
    x, queue = new("x"), new("q")
    await ch.exchange(x, auto_delete=True)
    await ch.declare(queue)
    await ch.bind(queue, x, "k")
    await ch.call(Queue.Unbind(queue=queue, exchange=x, routing_key="k"))
    assert (await ch.refuses(Exchange.Declare(exchange=x, passive=True))).code == 404


async def test_nobody_publishes_to_an_internal_exchange(ch: Channel, new: New) -> None:
    x = new("x")
    await ch.exchange(x, internal=True)
    ch.publish("k", exchange=x)
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == ("channel", 403)


async def test_publishing_to_a_missing_exchange_closes_the_channel(ch: Channel, new: New) -> None:
    ch.publish("k", exchange=new("none"))
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == ("channel", 404)


async def test_carbon_copies(ch: Channel, new: New) -> None:
    to, cc, bcc = new("to"), new("cc"), new("bcc")
    for queue in (to, cc, bcc):
        await ch.declare(queue)
    await ch.put(to, "m", headers={"CC": [cc, to], "BCC": [bcc]})
    for queue in (to, cc, bcc):
        message = await ch.get(queue)
        assert message is not None
        assert message.headers == {"CC": [cc, to]}
        assert isinstance(message.method, Basic.GetOk)
        assert message.method.routing_key == to
        assert await ch.get(queue) is None


async def test_carbon_copies_are_a_list(ch: Channel, new: New) -> None:
    ch.publish(new("none"), headers={"CC": "not a list"})
    refusal = await ch.refused()
    assert (refusal.scope, refusal.code) == ("channel", 406)
