"""Checks of what the user of the address may do, and the command that grants what is missing."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from evworker.workers.finding import Finding, Observed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evworker.broker.inspection import Act

APPLY = "`evworker topology apply`"


def check_permissions(seen: Observed) -> Iterator[Finding]:
    """What the user of this address may not do, and what that means for a worker."""
    user = repr(seen.address.user)
    refused: dict[Act, list[str]] = {}
    for one in seen.refusals:
        refused.setdefault(one.act, []).append(one.name)
    yield from _refused(seen, refused)
    if not refused:
        found = f"{user} may declare, bind, consume and publish"
        yield Finding("ok", "permissions", str(seen.address), found)


def _refused(seen: Observed, refused: dict[Act, list[str]]) -> Iterator[Finding]:
    user, grant = repr(seen.address.user), set_permissions(seen)
    if names := refused.get("declare"):
        yield Finding(
            "note",
            "permissions",
            ", ".join(names),
            f"{user} may not declare them: a worker uses what is there, and a delay that a handler "
            "asks for must have its queue already",
            f"{APPLY} with -b and a user who may, at each deployment",
        )
    if names := refused.get("bind"):
        yield Finding(
            # Who may not declare either is a worker whose topology someone else applies.
            "note" if refused.get("declare") else "warning",
            "permissions",
            ", ".join(dict.fromkeys(names)),
            f"{user} may not bind them: new topics arrive only once someone else has bound them",
            f"{APPLY} with -b and a user who may, at each deployment",
        )
    consumed = refused.get("consume", [])
    if names := [name for name in consumed if seen.role_of(name) in ("work", "quarantine")]:
        yield Finding(
            "problem",
            "permissions",
            ", ".join(names),
            f"{user} may not read from them, so what is there is never handled",
            grant,
        )
    if names := [name for name in consumed if seen.role_of(name) == "dead letters"]:
        yield Finding(
            "note",
            "permissions",
            ", ".join(names),
            f"{user} may not read from them: a worker need not, `evworker dlq` does",
            "`evworker dlq` with -b and a user who may",
        )
    published = refused.get("publish", [])
    if "" in published:
        yield Finding(
            "problem",
            "permissions",
            "amq.default",
            f"{user} may not publish to the default exchange: failed events can't be put aside, "
            "neither to be retried nor as dead letters, and stop their consumers",
            grant,
        )
    if seen.exchange in published:
        yield Finding(
            "warning",
            "permissions",
            seen.exchange,
            f"{user} may not publish to it: publishers can't, nor handlers with ctx.publish",
            grant,
        )


def set_permissions(seen: Observed, *, user: str | None = None) -> str:
    """The whole command; it replaces what the user may do in this virtual host."""
    families = [
        f"{re.escape(queue)}(\\.dlq|\\.quarantine|\\.retry\\..*)?" for queue in seen.consumers
    ]
    names = "|".join((f"{re.escape(seen.exchange)}(\\.unrouted)?", *families))
    patterns = (f"^({names})$", f"^({names}|amq\\.default)$", f"^({names})$")
    login = map(shlex.quote, (seen.address.vhost, user or seen.address.user))
    return f"`rabbitmqctl set_permissions -p {' '.join((*login, *map(shlex.quote, patterns)))}`"
