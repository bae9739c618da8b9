"""The audit: one structured line for every action that changes something."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog

log = structlog.get_logger("evworker.audit")

Action = Literal["replay", "edit", "import", "export", "purge"]

_DONE = {
    "replay": "dead letters replayed",
    "edit": "dead letter edited",
    "import": "dead letters imported",
    "export": "dead letters exported and removed",
    "purge": "dead letters purged",
}


@dataclass(slots=True)
class Account:
    """What an action has done so far."""

    count: int = 0
    outcome: str = "done"
    details: dict[str, Any] = field(default_factory=dict)


@contextmanager
def audited(action: Action, queue: str, **details: object) -> Iterator[Account]:
    """Log who did what to which letters, how many and with what outcome, however it ends.

    An action that failed before it changed anything is not logged.
    """
    account = Account(details=dict(details))
    started = time.monotonic()
    try:
        yield account
    except asyncio.CancelledError:
        account.outcome = "interrupted"
        raise
    except BaseException as error:
        account.outcome = f"failed: {error}"
        raise
    finally:
        if account.count or account.outcome == "done":
            log.info(
                _DONE[action],
                action=action,
                who=who(),
                queue=queue,
                count=account.count,
                outcome=account.outcome,
                seconds=round(time.monotonic() - started, 3),
                **account.details,
            )


def who() -> str:
    """The login and the host; by the system's own word, not the environment's."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
