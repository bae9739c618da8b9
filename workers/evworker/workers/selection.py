"""Which of the consumers a worker feeds, and how many events at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evworker.broker import ConfigurationError

if TYPE_CHECKING:
    from evworker.workers.consumer import Consumer


def selected(
    consumers: dict[str, tuple[Consumer, ...]],
    *,
    only: tuple[str, ...],
    without: tuple[str, ...],
    concurrency: int | None,
    prefetch: int | None,
) -> dict[str, tuple[Consumer, ...]]:
    """The consumers of these queues, by queue; raises ConfigurationError if none are left."""
    for queue in (*only, *without):
        if queue not in consumers:
            raise ConfigurationError(
                f"no consumer has a queue {queue!r}; there are {', '.join(sorted(consumers))}"
            )
    selected = {
        queue: tuple(_adjusted(consumer, concurrency, prefetch) for consumer in its_consumers)
        for queue, its_consumers in consumers.items()
        if (not only or queue in only) and queue not in without
    }
    if not selected:
        raise ConfigurationError("no queue is left to consume from")
    return selected


def _adjusted(consumer: Consumer, concurrency: int | None, prefetch: int | None) -> Consumer:
    if concurrency is None and prefetch is None:
        return consumer
    concurrency = concurrency or consumer.concurrency
    return replace(
        consumer, concurrency=concurrency, prefetch=prefetch or max(consumer.prefetch, concurrency)
    )
