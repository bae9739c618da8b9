"""Checks of the broker: its version, the way there, the topology, and what waits in it."""

from __future__ import annotations

import shlex
from ipaddress import ip_address
from typing import TYPE_CHECKING

from evworker.broker import BrokerVersion, dead_letter_queue
from evworker.broker.topology import quarantine_queue, unrouted_exchange
from evworker.workers.finding import Check, Finding, Observed, Role
from evworker.workers.permission_checks import APPLY, set_permissions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from evworker.broker import Difference, Queue

LONGEST_HEARTBEAT_S = 60

# Only these two ask for the right to configure where others ask for none or for any.
_SHY = (BrokerVersion(4, 2, 6), BrokerVersion(4, 3, 0))

_WITHOUT: dict[Role, str] = {
    "exchange": "nothing can be published",
    "unrouted": "an event that no queue is bound to is dropped, and nobody is told",
    "work": "its events count as unrouted",
    "quarantine": "a message that may kill its worker has nowhere to run alone",
    "retry": "failed events have nowhere to wait for their next attempt",
    "dead letters": "what can't be handled has nowhere to go",
}

_NEWER_QUEUE = "upgrade to RabbitMQ 4.3 or later, then give the consumer a new queue"

_AT_MOST_ONCE = "it dead-letters at most once: what its target can't take at that moment is dropped"


def check_version(seen: Observed) -> Iterator[Finding]:
    """What follows from the version that the broker tells."""
    if seen.version.is_embedded:
        yield Finding(
            "problem",
            "version",
            str(seen.address),
            "evworker's embedded broker: it keeps everything in memory, and nothing when it ends",
            "a RabbitMQ 3.10 or later, for all that may not be lost",
        )
    elif seen.version in _SHY:
        yield Finding(
            "warning",
            "version",
            str(seen.address),
            f"RabbitMQ {seen.version} lets nobody look at a queue who may not configure it: "
            "what `dlq list` and this verb say can be incomplete",
            "upgrade RabbitMQ to the next patch",
        )
    else:
        kinds = "on quorum queues" if seen.version.has_quorum_priorities else "on classic queues"
        yield Finding(
            "ok",
            "version",
            str(seen.address),
            f"RabbitMQ {seen.version}; 3.10 or later is needed; priorities are {kinds}",
        )
    if not seen.takes_messages:
        yield Finding(
            "problem",
            "alarm",
            str(seen.address),
            "the broker takes no messages, as when it is short of memory or disk space: "
            "nothing can be published, retried or dead-lettered until that is over",
            "`rabbitmqctl status` shows the alarm under Alarms; free what it names",
        )


def check_address(seen: Observed) -> Iterator[Finding]:
    """The way to the broker: TLS, the login, the heartbeat."""
    address, subject = seen.address, str(seen.address)
    remote = [host for host, _ in address.hosts if not _is_local(host)]
    if remote and not address.tls:
        yield Finding(
            "warning",
            "address",
            subject,
            f"no TLS to {', '.join(remote)}: the password and all events can be read on the way",
            "amqps://…?cafile=… as --broker-url, with the broker's port for TLS",
        )
    else:
        yield Finding(
            "ok", "address", subject, "TLS" if address.tls else "on this host, so without TLS"
        )
    if remote and address.user == "guest" and not address.external_login:
        yield Finding(
            "warning",
            "address",
            subject,
            "'guest' may log in from another host: everybody knows that name, and its password",
            f"`rabbitmqctl add_user NAME`, then {set_permissions(seen, user='NAME')}, "
            "then `rabbitmqctl delete_user guest`",
        )
    if address.heartbeat_s == 0:
        yield Finding(
            "problem",
            "address",
            subject,
            "heartbeat=0: a connection that dies without a word is never missed, and its worker "
            "waits for ever",
            "leave heartbeat=0 out of --broker-url, for 20 seconds",
        )
    elif address.heartbeat_s > LONGEST_HEARTBEAT_S:
        yield Finding(
            "note",
            "address",
            subject,
            f"heartbeat={address.heartbeat_s}: a connection that dies without a word is missed "
            f"after about {3 * address.heartbeat_s} s",
            "heartbeat=20 in --broker-url",
        )


def check_topology(seen: Observed) -> Iterator[Finding]:
    """Exchanges and queues as they are, against the plan."""
    for difference in seen.differences:
        if difference.state == "missing":
            yield _missing(seen, difference)
        elif difference.state == "different":
            yield _different(seen, difference)
    if unseen := [one.name for one in seen.differences if one.state == "forbidden"]:
        yield Finding(
            "note",
            "topology",
            seen.exchange,
            f"{len(unseen)} of the exchanges and queues can't be compared with the plan, because "
            f"{seen.address.user!r} may not declare them",
            "`evworker doctor` with -b and a user who may",
        )
    same = [one for one in seen.differences if one.state == "same"]
    if len(same) == len(seen.differences):
        exchanges = sum(one.kind == "exchange" for one in same)
        queues = len(same) - exchanges
        yield Finding(
            "ok", "topology", seen.exchange, f"{exchanges} exchanges and {queues} queues as planned"
        )
    yield from _dead_lettering(seen)
    yield from _delivery_limits(seen)


def _missing(seen: Observed, difference: Difference) -> Finding:
    role = seen.role_of(difference.name)
    fix = APPLY
    if any(one.act == "declare" and one.name == difference.name for one in seen.refusals):
        fix = f"{APPLY} with -b and a user who may configure, or {set_permissions(seen)}"
    return Finding(
        "problem",
        "unrouted" if role == "unrouted" else "topology",
        difference.name,
        f"there is no such {difference.kind}: {_WITHOUT[role]}",
        fix,
    )


def _different(seen: Observed, difference: Difference) -> Finding:
    role, argument = seen.role_of(difference.name), difference.argument or ""
    check: Check = "topology"
    meaning = "workers won't start"
    if argument == "alternate-exchange":
        check, meaning = "unrouted", _WITHOUT["unrouted"]
    elif argument == "x-delivery-limit":
        check = "delivery-limit"
        meaning = "how often a message may come back is not what evworker counts on"
    elif role in ("work", "quarantine", "retry") and (
        argument.startswith("x-dead-letter-") or argument == "x-overflow"
    ):
        check = "dead-lettering"
        if argument in ("x-dead-letter-strategy", "x-overflow"):
            meaning = _AT_MOST_ONCE
        else:
            meaning = "what it dead-letters goes elsewhere, or nowhere"
    fix = difference.advice
    if difference.kind == "queue" and role == "unrouted":
        named = f"-p {_quoted(seen.address.vhost)} {_quoted(difference.name)}"
        fix = f"`rabbitmqctl delete_queue {named}` once nobody needs what it holds, then {APPLY}"
    return Finding(
        "problem",
        check,
        difference.name,
        f"{argument} should be {difference.expected}, but is {difference.found}: {meaning}",
        fix,
    )


def _dead_lettering(seen: Observed) -> Iterator[Finding]:
    safe = [
        queue.name
        for queue in _as_planned(seen)
        if queue.arguments.get("x-dead-letter-strategy") == "at-least-once"
    ]
    if safe:
        yield Finding("ok", "dead-lettering", _listed(safe), "at least once")
    for queue in _as_planned(seen):
        if queue.arguments.get("x-queue-type") == "classic":
            yield Finding(
                "note",
                "dead-lettering",
                queue.name,
                f"a classic queue, as priorities need on RabbitMQ {seen.version}: the broker "
                "dead-letters from it at most once; evworker republishes with a confirm instead",
                _NEWER_QUEUE,
            )


def _delivery_limits(seen: Observed) -> Iterator[Finding]:
    by_limit: dict[object, list[str]] = {}
    for queue in _as_planned(seen):
        if seen.role_of(queue.name) in ("work", "quarantine"):
            by_limit.setdefault(queue.arguments.get("x-delivery-limit"), []).append(queue.name)
    counted = "failures" if seen.version.has_quorum_priorities else "hand-backs included"
    for limit, names in by_limit.items():
        if limit is None:
            yield Finding(
                "note",
                "delivery-limit",
                _listed(names),
                "classic queues have none, and count no deliveries: what comes back twice runs in "
                "quarantine, which counts",
                _NEWER_QUEUE,
            )
        else:
            yield Finding("ok", "delivery-limit", _listed(names), f"{limit}, {counted}")


def check_waiting(seen: Observed) -> Iterator[Finding]:
    """Letters and unrouted events that wait for someone, and who takes them away unasked."""
    vhost = _quoted(seen.address.vhost)
    letters = [dead_letter_queue(queue) for queue in seen.consumers]
    for name in letters:
        counts = seen.counts.get(name)
        if counts and counts.messages:
            yield Finding(
                "note",
                "dead-letters",
                name,
                f"{_counted(counts.messages, 'dead letter')}",
                f"`evworker dlq show {_quoted(name)}`",
            )
    for name, counts in seen.counts.items():
        role = seen.role_of(name)
        if counts.consumers and role not in ("work", "quarantine"):
            yield Finding(
                "warning",
                "unrouted" if role == "unrouted" else "dead-letters",
                name,
                f"{_counted(counts.consumers, 'subscription')}: somebody takes away what should "
                + ("wait there" if role == "retry" else "be kept there"),
                f"stop them; `rabbitmqctl list_consumers -p {vhost}` says who",
            )
    for name in map(quarantine_queue, seen.consumers):
        if (counts := seen.counts.get(name)) and counts.messages:
            found = (
                f"{_counted(counts.messages, 'message')} that may kill a worker, to be run alone"
            )
            yield Finding("note", "delivery-limit", name, found, "a worker of the queue, running")
    quiet = [
        name
        for name in letters
        if (counts := seen.counts.get(name)) and not counts.messages and not counts.consumers
    ]
    if quiet:
        yield Finding("ok", "dead-letters", _listed(quiet), "there, empty, and nobody consumes")
    yield from _unrouted(seen)


def _unrouted(seen: Observed) -> Iterator[Finding]:
    name = unrouted_exchange(seen.exchange)
    counts = seen.counts.get(name)
    (kept,) = (q.arguments.get("x-max-length", 0) for q in seen.plan.queues if q.name == name)
    show = f"`evworker dlq show {_quoted(name)}`"
    if counts and counts.messages >= int(kept):
        found = f"{_counted(counts.messages, 'event')}, so it is full: the oldest go"
        yield Finding(
            "warning", "unrouted", name, found, f"{show}; bind a consumer to their topics"
        )
    elif counts and counts.messages:
        found = f"{_counted(counts.messages, 'event')} that no queue was bound to"
        fix = f"{show}; a consumer is not deployed, or a topic has a typo"
        yield Finding("note", "unrouted", name, found, fix)
    states = [seen.states.get((kind, name)) for kind in ("exchange", "queue")]
    if {*states, seen.states.get(("exchange", seen.exchange))} == {"same"}:
        found = f"what no queue is bound to is kept, the newest {int(kept):,}"
        yield Finding("ok", "unrouted", seen.exchange, found)


def check_unseen(seen: Observed) -> Iterator[Finding]:
    """What AMQP has no way to tell."""
    vhost, subject = _quoted(seen.address.vhost), str(seen.address)
    yield Finding(
        "note",
        "unseen",
        subject,
        "AMQP can't list bindings; a worker makes those of its consumers when it starts",
        f"`rabbitmqctl list_bindings -p {vhost}`",
    )
    yield Finding(
        "note",
        "unseen",
        subject,
        "AMQP can't list policies; one with a length limit, an expiry or another overflow can "
        "break what is promised",
        f"`rabbitmqctl list_policies -p {vhost}`",
    )
    yield Finding(
        "note",
        "unseen",
        subject,
        "AMQP can't tell how many nodes keep a copy; of one node there is one copy",
        f"`rabbitmqctl list_queues -p {vhost} name members`",
    )


def _as_planned(seen: Observed) -> list[Queue]:
    return [queue for queue in seen.plan.queues if seen.states[("queue", queue.name)] == "same"]


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _quoted(text: str) -> str:
    return shlex.quote(text)
