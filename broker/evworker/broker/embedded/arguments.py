"""What a queue was declared with: read once, checked, and compared when it is declared again.

https://www.rabbitmq.com/docs/4.0/queues#optional-arguments
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pamqp.common import FieldTable

from evworker.broker.embedded.refusals import Code, Refusal

_DEFAULT_DELIVERY_LIMIT = 20
_LONGEST_MS = 1000 * 60 * 60 * 24 * 365 * 10


Check = Callable[[object], str | None]
"""What is wrong with a value, as RabbitMQ says it, or None."""


def _whole(least: int = 0, most: float = math.inf, over: str = "value_too_large") -> Check:
    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f'"expected integer, got {_type_of(value)}"'
        if value < 0:
            return f"{{value_negative,{value}}}"
        if value < least:
            return "{value_zero,0}"
        return f"{{{over},{value}}}" if value > most else None

    return check


def _a(kind: type) -> Check:
    return lambda value: (
        None if isinstance(value, kind) else f"{{unacceptable_type,{_type_of(value)}}}"
    )


def _one_of(*known: str, otherwise: str) -> Check:
    return lambda value: None if value in known else otherwise


_CHECKS: Mapping[str, Check] = {
    "x-message-ttl": _whole(most=_LONGEST_MS),
    "x-expires": _whole(least=1, most=_LONGEST_MS),
    "x-max-length": _whole(),
    "x-max-length-bytes": _whole(),
    "x-overflow": _one_of(
        "drop-head", "reject-publish", "reject-publish-dlx", otherwise="invalid_overflow"
    ),
    "x-dead-letter-exchange": _a(str),
    "x-dead-letter-routing-key": _a(str),
    "x-dead-letter-strategy": _one_of(
        "at-most-once", "at-least-once", otherwise="invalid_dlx_strategy"
    ),
    "x-max-priority": _whole(most=255, over="max_value_exceeded"),
    "x-delivery-limit": lambda _: None,  # RabbitMQ takes whatever it is
    "x-single-active-consumer": _a(bool),
}
_OF_CLASSIC_ONLY = {"x-max-priority"}
_OF_QUORUM_ONLY = {"x-dead-letter-strategy", "x-delivery-limit"}


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What a queue's arguments mean. Times are seconds."""

    is_quorum: bool
    message_ttl_s: float | None
    expires_s: float | None
    max_length: int | None
    max_length_bytes: int | None
    rejects_publishes: bool
    dead_letters_rejected: bool
    dead_letter_exchange: str | None
    dead_letter_routing_key: str | None
    at_least_once: bool
    max_priority: int
    delivery_limit: int | None
    single_active_consumer: bool


def read_arguments(arguments: FieldTable, queue: str) -> QueueSettings:
    """Raises Refusal. `queue` is the queue with its virtual host, as refusals name it."""
    kind = arguments.get("x-queue-type", "classic")
    if (wrong := _a(str)(kind)) is None and kind not in ("classic", "quorum"):
        wrong = f"\"unsupported queue type '{kind!s}'\""
    if wrong:
        raise _invalid("x-queue-type", queue, f": {wrong}")
    is_quorum = kind == "quorum"
    for name in _OF_CLASSIC_ONLY if is_quorum else _OF_QUORUM_ONLY:
        if name in arguments:
            raise _invalid(name, queue, f" of queue type rabbit_{kind!s}_queue")
    for name, check in _CHECKS.items():
        if name in arguments and (wrong := check(arguments[name])):
            if wrong.startswith("{unacceptable") and name.startswith("x-dead"):
                raise Refusal(
                    Code.PRECONDITION_FAILED,
                    f"invalid type '{_type_of(arguments[name])}' for arg '{name}' in {queue}",
                )
            raise _invalid(name, queue, f": {wrong}")
    if "x-dead-letter-routing-key" in arguments and "x-dead-letter-exchange" not in arguments:
        raise _invalid("x-dead-letter-routing-key", queue, ": routing_key_but_no_dlx_defined")
    return _settings(arguments, is_quorum=is_quorum)


def _settings(checked: Mapping[str, Any], *, is_quorum: bool) -> QueueSettings:
    overflow = checked.get("x-overflow")
    exchange = checked.get("x-dead-letter-exchange")
    limit = checked.get("x-delivery-limit")
    limit = limit if isinstance(limit, int) else _DEFAULT_DELIVERY_LIMIT
    return QueueSettings(
        is_quorum=is_quorum,
        message_ttl_s=_seconds(checked.get("x-message-ttl")),
        expires_s=_seconds(checked.get("x-expires")),
        max_length=checked.get("x-max-length"),
        max_length_bytes=checked.get("x-max-length-bytes"),
        # A quorum queue takes the third kind of overflow for the first.
        rejects_publishes=overflow == "reject-publish"
        or (overflow == "reject-publish-dlx" and not is_quorum),
        dead_letters_rejected=overflow == "reject-publish-dlx" and not is_quorum,
        dead_letter_exchange=exchange,
        dead_letter_routing_key=checked.get("x-dead-letter-routing-key"),
        at_least_once=checked.get("x-dead-letter-strategy") == "at-least-once"
        and exchange is not None
        and overflow == "reject-publish",
        max_priority=checked.get("x-max-priority", 0),
        # A negative limit is none at all, from 4.0 on.
        delivery_limit=limit if is_quorum and limit >= 0 else None,
        single_active_consumer=checked.get("x-single-active-consumer", False),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1_000


def check_equivalent(declared: FieldTable, current: FieldTable, queue: str) -> None:
    """Raises Refusal for an argument that the broker knows and that differs from the queue's."""
    kinds = [str(each.get("x-queue-type", "classic")) for each in (declared, current)]
    if kinds[0] != kinds[1]:
        raise inequivalent("x-queue-type", queue, f"'{kinds[0]}'", f"'{kinds[1]}'")
    for name in _CHECKS:
        one, other = declared.get(name), current.get(name)
        if one != other:
            both = one is not None and other is not None
            raise inequivalent(name, queue, _shown(one, plain=both), _shown(other, plain=both))


def inequivalent(name: str, what: str, received: str, current: str) -> Refusal:
    """The refusal of a declaration that differs from what there is."""
    return Refusal(
        Code.PRECONDITION_FAILED,
        f"inequivalent arg '{name}' for {what}: received {received} but current is {current}",
    )


def _shown(value: object, *, plain: bool) -> str:
    if value is None:
        return "none"
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{shown}'" if plain else f"the value '{shown}' of type '{_type_of(value)}'"


def _type_of(value: object) -> str:
    """What RabbitMQ calls the type that a client chose; of a number only the usual one is known."""
    names = {bool: "bool", int: "signedint", str: "longstr", float: "double", dict: "table"}
    return "void" if value is None else names.get(type(value), type(value).__name__)


def _invalid(name: str, queue: str, why: str) -> Refusal:
    return Refusal(Code.PRECONDITION_FAILED, f"invalid arg '{name}' for {queue}{why}")
