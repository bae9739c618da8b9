"""The benchmark without a broker: that it still fits what it measures."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("options", [(), ("--profile",)])
def test_canned_messages_are_all_handled(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "benchmarks.canned", "--messages", "200", "--rounds", "1"]
    told = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    assert told.stderr == ""
    assert ("function calls" if options else "200 messages, 1 rounds") in told.stdout
