"""How long to wait before trying again."""

from __future__ import annotations

import random

LONGEST_S = 20.0


def backoff_s(attempt: int, *, first_s: float = 0.2, longest_s: float = LONGEST_S) -> float:
    """Seconds to wait after the `attempt`-th failure in a row, counted from 1.

    Doubles from `first_s` to `longest_s`, and is drawn from the upper half of that, so that a
    hundred workers that lost the same broker do not all come back in the same instant.
    """
    full = min(longest_s, first_s * 2.0 ** min(attempt - 1, 32))
    return full * random.uniform(0.5, 1.0)
