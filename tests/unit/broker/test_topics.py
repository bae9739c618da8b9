"""Topics and patterns, against a model that is too slow and too simple to be wrong."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evworker.broker import InvalidTopicError, check_pattern, check_topic
from evworker.broker.topics import matches, overlap

WORDS = ("a", "b", "c")
topics = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(".".join)
patterns = st.lists(st.sampled_from(("a", "b", "*", "#")), min_size=1, max_size=5).map(".".join)
short_patterns = st.lists(st.sampled_from(("a", "b", "*", "#")), min_size=1, max_size=3).map(
    ".".join
)


def matches_by_trying_everything(pattern: str, topic: str) -> bool:
    """Puts every number of `*` in the place of each `#`, and compares word by word."""
    words = topic.split(".")
    choices = [
        [["*"] * count for count in range(len(words) + 1)] if word == "#" else [[word]]
        for word in pattern.split(".")
    ]
    for chosen in itertools.product(*choices):
        candidate = list(itertools.chain.from_iterable(chosen))
        if len(candidate) == len(words) and all(
            wanted in ("*", word) for wanted, word in zip(candidate, words, strict=True)
        ):
            return True
    return False


@given(pattern=patterns, topic=topics)
def test_a_pattern_matches_what_the_model_says(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == matches_by_trying_everything(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("orders.placed", "orders.placed", True),
        ("orders.placed", "orders.place", False),
        ("orders.*", "orders.placed", True),
        ("orders.*", "orders", False),
        ("orders.*", "orders.placed.again", False),
        ("orders.#", "orders", True),
        ("orders.#", "orders.placed.again", True),
        ("#.placed", "placed", True),
        ("#", "anything.at.all", True),
        ("*", "", False),
        ("#", "", True),
        ("#.*", "one", True),
        ("#.*.*", "one", False),
    ],
)
def test_the_wildcards_mean_what_rabbitmq_says(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


def test_a_pattern_of_many_wildcards_is_no_way_to_stop_a_worker() -> None:
    topic = ".".join(["a"] * 127)
    assert not matches("#.a." * 20 + "b", topic)
    assert not overlap("#.a." * 20 + "b", "#.b." * 20 + "a")


@given(one=patterns, other=patterns, topic=topics)
def test_patterns_that_share_a_topic_overlap(one: str, other: str, topic: str) -> None:
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)


@given(one=patterns, other=patterns)
def test_overlap_is_symmetric(one: str, other: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    assert overlap(one, one)


@settings(max_examples=60)
@given(one=short_patterns, other=short_patterns)
def test_patterns_that_overlap_share_a_topic(one: str, other: str) -> None:
    longest = len(one.split(".")) + len(other.split("."))
    shared = any(
        matches(one, topic) and matches(other, topic)
        for count in range(1, longest + 1)
        for topic in map(".".join, itertools.product(WORDS, repeat=count))
    )
    assert overlap(one, other) == shared


@pytest.mark.parametrize("text", ["orders", "orders.placed", "A-1.b_2", "a" * 255])
def test_a_good_topic_is_returned(text: str) -> None:
    assert check_topic(text) == text
    assert check_pattern(text) == text


@pytest.mark.parametrize("text", ["*", "#", "orders.*", "#.placed", "a.*.#"])
def test_a_pattern_may_hold_wildcards_and_a_topic_may_not(text: str) -> None:
    assert check_pattern(text) == text
    with pytest.raises(InvalidTopicError, match="a topic has no wildcards"):
        check_topic(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "can't be empty"),
        ("orders..placed", "an empty word"),
        (".orders", "an empty word"),
        ("orders.", "an empty word"),
        ("orders placed", "the word 'orders placed': only letters"),
        ("orders/placed", "only letters"),
        ("bestellung.überfällig", "the word 'überfällig': only letters"),
        ("orders.placed\n", "only letters"),
        ("orders.pl*", "a wildcard must stand alone"),
        ("orders.##", "a wildcard must stand alone"),
        ("a" * 256, "longer than 255 characters"),
    ],
)
def test_a_bad_pattern_is_refused_with_the_word_that_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(InvalidTopicError, match=fault):
        check_pattern(text)


@given(st.text(max_size=300))
def test_any_text_is_a_topic_or_an_invalid_topic(text: str) -> None:
    try:
        assert check_topic(text) == text
    except InvalidTopicError:
        return
    assert all(word.isascii() and word for word in text.split("."))
