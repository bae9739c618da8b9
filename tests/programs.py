"""Programs that a test runs itself: servers of its own to kill, `openssl` for certificates.

A machine whose broker and databases are containers may have none of them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def program(*candidates: str, instead: str = "") -> str:
    """The path of the first of these programs, names or paths, that this machine has.

    Without one the test is skipped and says so, and `instead` with it. Under CI it fails: nobody
    reads there what was skipped, and a promise would go unproved.
    """
    for candidate in candidates:
        if found := shutil.which(candidate):
            return found
    reason = f"this test runs {Path(candidates[0]).name}, which this machine has not{instead}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; under CI that is a failure", pytrace=False)
    pytest.skip(reason)
