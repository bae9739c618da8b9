"""Topic patterns of the embedded broker, against their definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evworker.broker.embedded.exchanges import topic_matches

words = st.lists(st.sampled_from(("a", "b", "")), max_size=5)
patterns = st.lists(st.sampled_from(("a", "b", "", "*", "#")), max_size=5)


def defined(pattern: list[str], key: list[str]) -> bool:
    if not pattern:
        return not key
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(defined(rest, key[taken:]) for taken in range(len(key) + 1))
    return bool(key) and first in ("*", key[0]) and defined(rest, key[1:])


@given(patterns, words)
def test_stars_are_one_word_and_hashes_any_number(pattern: list[str], key: list[str]) -> None:
    assert topic_matches(pattern, key) == defined(pattern, key)
