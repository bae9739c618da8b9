"""The fast lane's switch."""

from __future__ import annotations

import os

VARIABLE = "EVWORKER_FAST_LANE"
_OFF = frozenset(("0", "false", "no", "off"))


def is_switched_on() -> bool:
    """Whether connections made from now on read hot frames themselves, or leave all to aio-pika.

    Of the environment, and so of a whole process: it is for an operator who suspects the fast lane,
    and who can't change the program.
    """
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF
