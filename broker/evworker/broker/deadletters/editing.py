"""Editing: a letter's event is repaired, and goes back to work under an id of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from aiormq import spec

from evworker.broker.deadletters.audit import audited
from evworker.broker.deadletters.copying import copy_of, short_string
from evworker.broker.deadletters.history import EDIT_OF_HEADER
from evworker.broker.deadletters.putting import putting
from evworker.broker.deadletters.replay import origin_queue
from evworker.broker.deadletters.taking import taking
from evworker.broker.envelope import BINARY_PREFIXES, CONTENT_TYPE, Envelope, new_id
from evworker.broker.headers import kept_headers

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

    from evworker.broker.connection import Connection
    from evworker.broker.deadletters.letter import Letter
    from evworker.broker.event import Event


def edited_envelope(letter: Letter, text: bytes, event_type: type[Event] | None = None) -> Envelope:
    """What the letter becomes with `text` as its event's data, under a new id.

    Of a letter that can't be read as an event, `text` is the whole body. The correlation stays.
    Raises UndecodableError for what can't be read, or InvalidEventError for what `event_type` does
    not take, which names the field.
    """
    old = letter.envelope
    if old is None:
        routing_key = letter.failure.origin_routing_key or ""
        envelope = Envelope.read(text, letter.properties, routing_key)
    else:
        envelope = msgspec.structs.replace(old, data=text)
    envelope.value()  # the data is JSON
    data = msgspec.json.format(envelope.data, indent=-1)
    envelope = msgspec.structs.replace(
        envelope,
        id=new_id(),
        data=data,
        correlation_id=envelope.correlation_id or letter.id,
    )
    if event_type is not None:
        envelope.decode(event_type)
    return envelope


async def edit_dead_letter(
    connection: Connection,
    queue: str,
    letter: Letter,
    envelope: Envelope,
    *,
    to: str | None = None,
) -> bool:
    """Put the envelope where the letter failed, or into `to`, and then remove the letter.

    The copy says in ``evw-edit-of`` what it was edited from. False, and nothing is done, when the
    letter is no longer there. Raises as `replay_dead_letters` does.
    """
    target = to or origin_queue(queue)
    with audited("edit", queue, to=target, id=letter.id, new_id=envelope.id) as account:
        async with (
            taking(connection, queue, to_remove=True) as held,
            putting(connection, target, held.remove) as copies,
        ):
            while (message := await held.next()) is not None:
                if _is_same(message, letter):
                    await copies.put(envelope.encode(), _properties(letter, envelope), message)
                    await copies.settled()
                    copies.raise_failure()
                    account.count = 1
                    break
        if not account.count:
            account.outcome = "gone"
    return bool(account.count)


def _is_same(found: DeliveredMessage, letter: Letter) -> bool:
    properties = found.header.properties
    return (
        found.body == letter.body
        and properties.message_id == letter.properties.message_id
        # Without the broker's own, which count how often it was looked at.
        and kept_headers(properties.headers) == kept_headers(letter.headers)
    )


def _properties(letter: Letter, envelope: Envelope) -> spec.Basic.Properties:
    """Those of a replayed copy, and in them what the new envelope says."""
    properties = copy_of(letter, datetime.now(UTC))
    headers = {
        name: value
        for name, value in (properties.headers or {}).items()
        if not name.startswith(BINARY_PREFIXES)
    }
    if letter.id is not None:
        headers[EDIT_OF_HEADER] = letter.id
    properties.headers = headers
    properties.content_type, properties.content_encoding = CONTENT_TYPE, None
    properties.message_id = envelope.id
    properties.message_type = short_string(envelope.topic)
    properties.correlation_id = short_string(envelope.correlation_id)
    properties.app_id = short_string(envelope.source)
    return properties
