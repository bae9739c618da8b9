"""What a user imports from the first floor."""

from __future__ import annotations

import evworker.workers


def test_what_is_offered_is_what_is_listed() -> None:
    offered = {
        name
        for name, value in vars(evworker.workers).items()
        if not name.startswith("_") and getattr(value, "__module__", None) is not None
    }
    assert offered == set(evworker.workers.__all__)


def test_the_list_is_sorted_and_the_users_vocabulary_is_on_it() -> None:
    assert list(evworker.workers.__all__) == sorted(evworker.workers.__all__)
    vocabulary = {"Plugin", "Context", "Retry", "RetryAfter", "Worker", "AnyEvent"}
    assert vocabulary <= set(evworker.workers.__all__)


def test_every_name_has_a_docstring() -> None:
    values = [getattr(evworker.workers, name) for name in evworker.workers.__all__]
    undocumented = [value for value in values if isinstance(value, type) and not value.__doc__]
    assert not undocumented
