"""What a dead letter has on it, and when it may not come back: pure functions of a message.

https://www.rabbitmq.com/docs/4.0/dlx
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from evworker.broker.embedded.content import (
    encoded_array,
    encoded_long,
    encoded_moment,
    encoded_table,
    encoded_text,
)
from evworker.broker.embedded.message import Death, Message

REJECTED = "rejected"
EXPIRED = "expired"
MAX_LENGTH = "maxlen"
DELIVERY_LIMIT = "delivery_limit"


def dead_letter(
    message: Message,
    *,
    queue: str,
    reason: str,
    now: datetime,
    exchange: str,
    routing_key: str | None,
) -> Message:
    """The message as it leaves the queue in which it died, on its way to the exchange."""
    deaths = _recorded(message, queue, reason, now)
    content = message.content.without("expiration")
    return Message(
        exchange=exchange,
        routing_keys=message.routing_keys if routing_key is None else (routing_key,),
        content=content.with_headers(_headers(deaths, message)),
        body=message.body,
        deaths=deaths,
    )


def is_cycle(message: Message, queue: str, reason: str) -> bool:
    """Whether a dead letter would go round for ever: back where it was, and nobody rejected it."""
    if reason == REJECTED:
        return False
    for death in message.deaths:
        if death.reason == REJECTED:
            return False
        if death.queue == queue:
            return True
    return False


def _recorded(message: Message, queue: str, reason: str, now: datetime) -> tuple[Death, ...]:
    """The deaths, the last first; who dies again of the same in the same queue is counted."""
    for death in message.deaths:
        if (death.queue, death.reason) == (queue, reason):
            others = tuple(each for each in message.deaths if each is not death)
            return (replace(death, count=death.count + 1), *others)
    death = Death(
        queue=queue,
        reason=reason,
        count=1,
        time=now,
        exchange=message.exchange,
        routing_keys=message.routing_keys,
        original_expiration=message.content.text("expiration"),
    )
    return (death, *message.deaths)


def _headers(deaths: tuple[Death, ...], before: Message) -> Mapping[str, bytes]:
    headers = {
        "x-death": encoded_array(_line(death) for death in deaths),
        **_named("last", deaths[0]),
    }
    if not before.deaths:
        headers.update(_named("first", deaths[0]))
    return headers


def _named(which: str, death: Death) -> dict[str, bytes]:
    return {
        f"x-{which}-death-exchange": encoded_text(death.exchange),
        f"x-{which}-death-queue": encoded_text(death.queue),
        f"x-{which}-death-reason": encoded_text(death.reason),
    }


def _line(death: Death) -> bytes:
    fields = {
        b"count": encoded_long(death.count),
        b"reason": encoded_text(death.reason),
        b"queue": encoded_text(death.queue),
        b"time": encoded_moment(death.time),
        b"exchange": encoded_text(death.exchange),
        b"routing-keys": encoded_array(encoded_text(key) for key in death.routing_keys),
    }
    if death.original_expiration is not None:
        fields[b"original-expiration"] = encoded_text(death.original_expiration)
    return b"F" + encoded_table(fields)
