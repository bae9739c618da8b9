"""`evworker outbox status`: what waits, for how long, and who publishes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evworker.cli import database, interrupts, options
from evworker.cli.failures import say
from evworker.cli.rendering import age, clock_time, counted, on_terminal, show_json_line, show_table
from evworker.cli.settings import Verb

if TYPE_CHECKING:
    from evworker.broker.outbox.operating import OutboxStatus


@click.command(cls=Verb)
@options.database_url
@options.as_json(
    "One JSON object: 'ready', 'oldest_age_s', 'claimed', 'scheduled', 'backing_off', 'dead', "
    "'sent_kept', 'blocked_keys', 'per_second', 'relays' (an array of 'name', 'started_at', "
    "'seen_at', 'sent', 'per_second'), 'leases' (an array of 'name', 'rows', 'ends_at')."
)
def status(database_url: str | None, as_json: bool) -> None:
    """What waits in the outbox, for how long, and which relays publish it.

    Looks, and changes nothing. `evworker doctor` judges it.
    """
    found = interrupts.run(_look(database_url))
    if as_json:
        show_json_line(_fields(found))
    else:
        _show(found)


async def _look(database_url: str | None) -> OutboxStatus:
    async with database.opened(database_url) as engine:
        from evworker.broker.outbox.operating import outbox_status

        return await outbox_status(engine)


def _show(found: OutboxStatus) -> None:
    rows = [
        ("ready", found.ready, "to be published"),
        ("claimed", found.claimed, "by a relay that is publishing them"),
        ("scheduled", found.scheduled, "not due yet"),
        ("backing off", found.backing_off, "refused by the broker, tried again"),
        ("dead", found.dead, "refused for good: `evworker outbox dead`"),
        ("sent", found.sent_kept, "published, and kept for a while"),
    ]
    show_table(
        ("outbox", "events", ""),
        [(name, number, meaning if number else "") for name, number, meaning in rows],
    )
    click.echo()
    if found.oldest_age_s is not None:
        click.echo(f"the oldest that is not published is {age(found.oldest_age_s)} old")
    if found.blocked_keys:
        blocked = counted(found.blocked_keys, "key waits", "keys wait")
        click.echo(f"{blocked} behind a row that backs off or is dead")
    if found.relays:
        _show_relays(found)
    if found.dead:
        _warn(f"{counted(found.dead, 'event')} won't be published unless you retry or discard them")
    if found.ready and not found.relays:
        _warn("no relay is at work: start `evworker outbox relay`, or a worker with this database")
    elif not found.relays:
        click.echo("no relay is at work")


def _show_relays(found: OutboxStatus) -> None:
    leases = {lease.name: lease for lease in found.leases}
    rows: list[tuple[object, ...]] = []
    for relay in found.relays:
        lease = leases.pop(relay.name, None)
        rows.append((relay.name, relay.sent, relay.per_second, *_held(lease)))
    # A relay that is gone still holds what it had claimed, until its leases are over.
    rows += [(lease.name, None, None, *_held(lease)) for lease in leases.values()]
    show_table(("relay", "published", "a second", "holds", "lease ends"), rows)


def _held(lease: Any) -> tuple[int | None, str | None]:
    return (lease.rows, clock_time(lease.ends_at)) if lease else (0, None)


def _warn(text: str) -> None:
    word = click.style("warning", fg="yellow") if on_terminal() else "warning"
    say(f"{word}: {text}")


def _fields(found: OutboxStatus) -> dict[str, Any]:
    """The fields that `outbox status --json` promises."""
    return {
        "ready": found.ready,
        "oldest_age_s": found.oldest_age_s,
        "claimed": found.claimed,
        "scheduled": found.scheduled,
        "backing_off": found.backing_off,
        "dead": found.dead,
        "sent_kept": found.sent_kept,
        "blocked_keys": found.blocked_keys,
        "per_second": found.per_second,
        "relays": [
            {
                "name": relay.name,
                "started_at": relay.started_at,
                "seen_at": relay.seen_at,
                "sent": relay.sent,
                "per_second": relay.per_second,
            }
            for relay in found.relays
        ],
        "leases": [
            {"name": lease.name, "rows": lease.rows, "ends_at": lease.ends_at}
            for lease in found.leases
        ],
    }
