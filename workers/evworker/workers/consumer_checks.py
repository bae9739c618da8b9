"""Checks of the consumers: how long a delivery may be held, prefetch, priorities, shared queues."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from evworker.broker import format_duration
from evworker.workers.consumer import LARGEST_PREFETCH
from evworker.workers.finding import Finding, Observed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from evworker.workers.consumer import Consumer

DEFAULT_ACK_TIMEOUT_S = 1_800.0
"""After this long the broker takes a delivery back
(https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""

FEW_AHEAD = 4
"""So many events, taken and not started, are little enough for priorities to mean something."""


def check_ack_timeout(seen: Observed) -> Iterator[Finding]:
    """How long a delivery may be held, waiting included, before the broker takes it back."""
    if seen.ack_timeout_s is None:
        return
    limit = format_duration(seen.ack_timeout_s)
    default = seen.ack_timeout_s == DEFAULT_ACK_TIMEOUT_S
    yield Finding(
        "note",
        "ack-timeout",
        str(seen.address),
        f"the broker takes back what is not acked within {limit}, "
        + ("its default; " if default else "as --ack-timeout says; ")
        + "AMQP can't tell what it is set to",
        "`rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'` says it in "
        "milliseconds; name it with --ack-timeout if it is another",
    )
    for consumers in seen.consumers.values():
        prefetch = _prefetch_of(consumers)
        for consumer in consumers:
            yield _held(consumer, prefetch, seen.ack_timeout_s)


def _held(consumer: Consumer, prefetch: int, ack_timeout_s: float) -> Finding:
    limit = format_duration(ack_timeout_s)
    name, timeout_s = consumer.name, consumer.timeout_s
    if timeout_s is None:
        # A plain function can't have one, and its author need not be warned of that each time.
        return Finding(
            "warning" if consumer.is_async else "note",
            "ack-timeout",
            name,
            f"its handler has no time limit; after {limit} the broker would take the event back "
            "and have it handled again",
            f'timeout="…", below {limit}'
            if consumer.is_async
            else f"see that the function ends within {limit}, or make it async def with a timeout",
        )
    timeout = format_duration(timeout_s)
    raised = (
        f"or consumer_timeout = {_raised_ms(timeout_s)} in rabbitmq.conf, and --ack-timeout here"
    )
    if timeout_s >= ack_timeout_s:
        return Finding(
            "problem",
            "ack-timeout",
            name,
            f"its handler may run for {timeout}, but after {limit} the broker takes the event "
            "back, with all others that its worker holds of that queue, and has them handled again",
            f'timeout="…", below {limit}; {raised}',
        )
    rounds = ceil(prefetch / consumer.concurrency)
    held_s = max(rounds, 1) * timeout_s
    held = f"prefetch {prefetch}, concurrency {consumer.concurrency}, timeout {timeout}"
    if held_s >= ack_timeout_s:
        return Finding(
            "warning",
            "ack-timeout",
            name,
            f"an event can be held for {format_duration(held_s)}, most of it before its handler "
            f"starts ({held}), but after {limit} the broker takes it back",
            f"prefetch={consumer.concurrency}, or a shorter timeout",
        )
    return Finding(
        "ok",
        "ack-timeout",
        name,
        f"handlers hold an event for {format_duration(held_s)} at most, waiting included ({held}); "
        "while another runs alone, from a quarantine, or the broker takes no copies, for longer",
    )


def check_prefetch(seen: Observed) -> Iterator[Finding]:
    """Prefetch against concurrency, and against priorities."""
    for queue, consumers in seen.consumers.items():
        prefetch = _prefetch_of(consumers)
        concurrency = sum(consumer.concurrency for consumer in consumers)
        if prefetch < concurrency:
            yield Finding(
                "note",
                "prefetch",
                queue,
                f"prefetch {prefetch} is less than concurrency {concurrency}: "
                f"only {prefetch} events are handled at once",
                f"prefetch={concurrency}, or concurrency={prefetch}",
            )
        if consumers[0].priorities is not None:
            yield from _priorities(seen, queue, consumers)


def _priorities(seen: Observed, queue: str, consumers: tuple[Consumer, ...]) -> Iterator[Finding]:
    priorities = consumers[0].priorities
    ahead = _prefetch_of(consumers) - sum(consumer.concurrency for consumer in consumers)
    if ahead > FEW_AHEAD:
        fix = " and ".join(f"prefetch={one.concurrency} for {one.name}" for one in consumers)
        yield Finding(
            "warning",
            "priorities",
            queue,
            f"a worker takes up to {ahead} events before it starts them, and nothing that is more "
            "urgent overtakes those",
            fix,
        )
    else:
        yield Finding(
            "ok",
            "priorities",
            queue,
            f"{priorities} priorities; a more urgent event waits behind at most {max(ahead, 0)} "
            "that a worker took before, and those that run",
        )
    if (4, 0) <= (seen.version.major, seen.version.minor) < (4, 3):
        yield Finding(
            "note",
            "priorities",
            queue,
            f"on RabbitMQ {seen.version} retry queues favour priorities above 4: "
            "others can wait there longer than their delay",
            "RabbitMQ 4.3 or later",
        )


def check_shared_queues(seen: Observed) -> Iterator[Finding]:
    """Queues of several consumers: what each worker of them must load."""
    for queue, consumers in seen.consumers.items():
        if len(consumers) == 1:
            continue
        plugins = list(dict.fromkeys(consumer.plugin for consumer in consumers))
        names = ", ".join(consumer.name for consumer in consumers)
        if len(plugins) > 1:
            yield Finding(
                "warning",
                "shared-queue",
                queue,
                f"{names} share it, but are of several plugins ({', '.join(plugins)}): a worker "
                "that loads only one of them makes dead letters of the others' events",
                "a queue for each plugin; or load them together, always",
            )
        else:
            yield Finding(
                "note",
                "shared-queue",
                queue,
                f"{names} share it, and its prefetch of {_prefetch_of(consumers)}: "
                "events of a slow one hold up the others'",
                "a queue of its own for each, if that matters",
            )


def _prefetch_of(consumers: Iterable[Consumer]) -> int:
    """What a worker asks the broker for: one subscription serves all consumers of a queue."""
    return min(sum(consumer.prefetch for consumer in consumers), LARGEST_PREFETCH)


def _raised_ms(timeout_s: float) -> int:
    return ceil(timeout_s * 1.2) * 1_000
