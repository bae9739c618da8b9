"""Purging: letters are removed for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from evworker.broker.deadletters.audit import audited
from evworker.broker.deadletters.filters import EVERYTHING, LetterFilter
from evworker.broker.deadletters.letter import Letter
from evworker.broker.deadletters.taking import taking

if TYPE_CHECKING:
    from evworker.broker.connection import Connection


async def purge_dead_letters(
    connection: Connection,
    queue: str,
    letters: LetterFilter = EVERYTHING,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], None] = lambda _removed: None,
) -> int:
    """Remove letters for good, oldest first, at most `limit`; returns how many.

    Letters that were not there at the start are left alone. Raises QueueNotFoundError, or
    BrokerError, when some may be removed and others not.
    """
    with audited("purge", queue, filter=str(letters), limit=limit) as account:
        async with taking(connection, queue, to_remove=True) as held:
            for position in range(1, held.waiting + 1):
                if account.count == limit or (message := await held.next()) is None:
                    break
                if letters.matches(Letter.read(message, position)):
                    held.remove(message)
                    account.count += 1
                    on_progress(account.count)
    return account.count
