"""Exchanges: who is bound to them, and to whom a message goes. They know of no wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pamqp.common import FieldTable

from evworker.broker.embedded.message import Message
from evworker.broker.embedded.refusals import Code, Refusal

Q = TypeVar("Q")  # the queues that may be bound

_REMEMBERED_KEYS = 4_096


@dataclass(eq=False)
class Binding(Generic[Q]):
    """From an exchange to a queue, or to another exchange."""

    destination: Q | Exchange[Q]
    key: str
    arguments: FieldTable

    def __post_init__(self) -> None:
        self.words = _words(self.key)
        self.identity = (id(self.destination), self.key, repr(sorted(self.arguments.items())))


@dataclass(eq=False)
class Exchange(Generic[Q]):
    """A named exchange. Raises Refusal for a kind or arguments that there are not."""

    name: str
    title: str
    """The exchange with its virtual host, as refusals name it."""
    kind: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: FieldTable = field(default_factory=dict)
    bindings: dict[tuple[int, str, str], Binding[Q]] = field(default_factory=dict)
    _routes: dict[str, tuple[Q | Exchange[Q], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Refusal(Code.PRECONDITION_FAILED, f"unknown exchange type '{self.kind}'")

    @property
    def alternate(self) -> str | None:
        name = self.arguments.get("alternate-exchange")
        return name if isinstance(name, str) else None

    def bind(self, binding: Binding[Q]) -> None:
        self.bindings[binding.identity] = binding
        self._routes.clear()

    def unbind(self, binding: Binding[Q]) -> bool:
        """Whether there was such a binding."""
        self._routes.clear()
        return self.bindings.pop(binding.identity, None) is not None

    def unbind_all(self, destination: Q | Exchange[Q]) -> bool:
        """Forget what leads there; whether anything did."""
        lost = [key for key, each in self.bindings.items() if each.destination is destination]
        for key in lost:
            del self.bindings[key]
        self._routes.clear()
        return bool(lost)

    def destinations(self, message: Message) -> Iterator[Q | Exchange[Q]]:
        """Where the message goes from here; the same may come twice."""
        if self.kind == "headers":
            headers = message.headers
            yield from (
                each.destination
                for each in self.bindings.values()
                if _headers_match(each.arguments, headers)
            )
            return
        for key in message.routing_keys + message.blind_keys:
            if key not in self._routes:
                if len(self._routes) >= _REMEMBERED_KEYS:
                    self._routes.clear()
                self._routes[key] = tuple(self._matching(key))
            yield from self._routes[key]

    def _matching(self, key: str) -> Iterator[Q | Exchange[Q]]:
        matches = KINDS[self.kind]
        words = _words(key)
        for binding in self.bindings.values():
            if matches(binding.words, words):
                yield binding.destination


def _words(key: str) -> list[str]:
    return key.split(".") if key else []


def _direct(pattern: list[str], words: list[str]) -> bool:
    return pattern == words


def _fanout(_pattern: list[str], _words: list[str]) -> bool:
    return True


def topic_matches(pattern: list[str], words: list[str]) -> bool:
    """Whether `*` for one word and `#` for any number of them make the pattern the words."""
    reached = {0}  # how many words the pattern so far can stand for
    for part in pattern:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
        if not reached:
            return False
    return len(words) in reached


KINDS: dict[str, Callable[[list[str], list[str]], bool]] = {
    "direct": _direct,
    "fanout": _fanout,
    "topic": topic_matches,
    "headers": _fanout,
}


def check_match(arguments: FieldTable) -> None:
    """Raises Refusal for an x-match that headers exchanges don't know."""
    how = arguments.get("x-match", "all")
    if how not in ("all", "any", "all-with-x", "any-with-x"):
        raise Refusal(
            Code.PRECONDITION_FAILED,
            f"Invalid x-match field value {how!r}; expected all, any, all-with-x, or any-with-x",
        )


def _headers_match(arguments: FieldTable, headers: FieldTable) -> bool:
    how = str(arguments.get("x-match", "all"))
    wanted = (
        name in headers and (value is None or _same(headers[name], value))
        for name, value in arguments.items()
        if name != "x-match" and (how.endswith("-with-x") or not name.startswith("x-"))
    )
    return any(wanted) if how.startswith("any") else all(wanted)


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
