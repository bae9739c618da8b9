"""Without a database nothing of SQLAlchemy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORKER = """
import sys
from evworker.broker import Event
from evworker.workers import Plugin, Worker
plugin = Plugin("billing")
@plugin.consumer("#")
async def handle(event, ctx): ...
Worker([plugin], "amqp://localhost/")
"""
CHECK = "import sys; assert 'sqlalchemy' not in sys.modules"


@pytest.mark.parametrize("code", ["import evworker.broker, evworker.workers", WORKER])
def test_nothing_of_sqlalchemy_is_imported(code: str) -> None:
    subprocess.run([sys.executable, "-c", f"{code}\n{CHECK}"], check=True, timeout=60)
