"""Why a publish was not confirmed: whatever ended it, in the words of this floor."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import aiormq.exceptions

from evworker.broker.channels import reason_of
from evworker.broker.errors import (
    ConnectionLostError,
    HeadersError,
    MessageTooLargeError,
    PublishError,
    PublishNackedError,
    PublishTimeoutError,
    UnroutableError,
)
from evworker.broker.fastlane.confirms import RefusedError, ReturnedError

if TYPE_CHECKING:
    from evworker.broker.connection import Connection
    from evworker.broker.message import Message

NOT_ENCODABLE = (TypeError, ValueError, OverflowError, struct.error)


def timed_out(
    message: Message,
    timeout_s: float,
    connection: Connection,
    *,
    has_channel: bool,
    sent: bool,
) -> PublishTimeoutError:
    """The deadline has passed: without a channel, before it could be sent on one, or after."""
    what = f"{message.routing_key} {message.id}"
    if not has_channel:
        return PublishTimeoutError(
            f"{what}: not sent, there was no channel to {connection.address} for {timeout_s:g} s"
        )
    if not sent:
        why = (
            "the broker blocks publishing"
            if connection.is_blocked
            else f"{connection.address} does not keep up"
        )
        return PublishTimeoutError(
            f"{what}: not sent, {why} for {timeout_s:g} s; publish it again, or less at once"
        )
    why = "the broker blocks publishing" if connection.is_blocked else "no confirm"
    return PublishTimeoutError(
        f"{what}: {why} for {timeout_s:g} s; the broker may have it or get it yet, "
        "publish it again with the same id"
    )


def explained(  # noqa: PLR0911 - a table
    error: BaseException, message: Message
) -> PublishError:
    """What the tap or aiormq answered a publish with, or ended it with."""
    exchange, routing_key, _ = message.route
    what = f"{routing_key} {message.id}"
    match error:
        case aiormq.exceptions.PublishError() | ReturnedError():
            where = f"exchange {exchange!r}" if exchange else "the default exchange"
            return UnroutableError(
                f"{what}: no queue takes it at {where}, and nothing there keeps the unrouted; "
                "run `evworker topology apply`"
            )
        case aiormq.exceptions.DeliveryError() | RefusedError():
            return PublishNackedError(
                f"{what}: the broker did not take it (its queue is full, or it failed inside)"
            )
        # These three close the channel for everybody on it; whose fault it was stands in the text.
        case aiormq.exceptions.ChannelPreconditionFailed() if (
            f"message size {len(message.body)} " in str(error)
        ):
            return MessageTooLargeError(f"{what}: {error}")
        case aiormq.exceptions.ChannelNotFoundEntity() if repr(exchange) in str(error):
            return UnroutableError(f"{what}: {error}; run `evworker topology apply`")
        case aiormq.exceptions.ChannelAccessRefused() if repr(exchange) in str(error):
            return PublishError(f"{what}: the broker's user may not publish there: {error}")
        case TypeError() | ValueError() | OverflowError() | struct.error():
            return HeadersError(f"{what}: AMQP can't carry its properties: {error}")
    return ConnectionLostError(
        f"{what}: the connection was lost before its confirm ({reason_of(error)}); "
        "the broker may have it, publish it again with the same id"
    )
