"""Topics, and the patterns that queues are bound with.

A topic is words of letters, digits, ``_`` and ``-`` with dots between: ``orders.placed``.
In a pattern ``*`` stands for exactly one word and ``#`` for any number of them, none included
(https://www.rabbitmq.com/tutorials/tutorial-five-python).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate
from operator import or_

from evworker.broker.errors import InvalidTopicError

_WORD = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 255  # an AMQP short string: routing keys, message types


def check_topic(topic: str) -> str:
    """Return the topic, or raise InvalidTopicError that says what is wrong with it."""
    _check(topic, "topic", wildcards=())
    return topic


def check_pattern(pattern: str) -> str:
    """Return the pattern, or raise InvalidTopicError that says what is wrong with it."""
    _check(pattern, "topic pattern", wildcards=("*", "#"))
    return pattern


def _check(text: str, what: str, wildcards: tuple[str, ...]) -> None:
    if not isinstance(text, str) or not text:
        raise InvalidTopicError(f"a {what} can't be empty; write for example 'orders.placed'")
    if len(text) > _LONGEST:
        raise InvalidTopicError(f"the {what} {text[:40]!r}… is longer than {_LONGEST} characters")
    for word in text.split("."):
        if word in wildcards or _WORD.fullmatch(word):
            continue
        if word == "":
            fault = "an empty word (two dots together, or one at an end)"
        elif "*" in word or "#" in word:
            fault = f"the word {word!r}: " + (
                "a wildcard must stand alone between dots"
                if wildcards
                else "a topic has no wildcards; a consumer's pattern may"
            )
        else:
            fault = f"the word {word!r}: only letters, digits, '_' and '-' are allowed"
        raise InvalidTopicError(f"the {what} {text!r} has {fault}")


@lru_cache(maxsize=8192)
def matches(pattern: str, topic: str) -> bool:
    """Whether a queue bound with the pattern receives the topic, as the broker decides it."""
    words = topic.split(".") if topic else []
    # matched[n]: whether the pattern's words so far take exactly the first n of the topic's.
    matched = [True] + [False] * len(words)
    for wanted in pattern.split("."):
        if wanted == "#":
            matched = list(accumulate(matched, or_))
        else:
            matched = [False] + [
                before and wanted in ("*", word)
                for before, word in zip(matched[:-1], words, strict=True)
            ]
    return matched[-1]


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both patterns.

    >>> overlap("orders.*", "*.placed"), overlap("orders.*", "payments.#")
    (True, False)
    """
    return _overlap(tuple(one.split(".")), tuple(other.split(".")))


@lru_cache(maxsize=8192)  # else several '#' on both sides would take exponential time
def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    if not one or not other:
        return all(word == "#" for word in one + other)
    if "#" in (one[0], other[0]):
        return _overlap(one[1:], other) or _overlap(one, other[1:])
    return (one[0] == other[0] or "*" in (one[0], other[0])) and _overlap(one[1:], other[1:])
