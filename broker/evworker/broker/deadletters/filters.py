"""Which letters are meant: one value, which every verb on dead letters takes."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Self

import msgspec

from evworker.broker.errors import ConfigurationError, UndecodableError
from evworker.broker.topics import matches as topic_matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from evworker.broker.deadletters.letter import Letter

_MISSING = object()

_WRITTEN = re.compile(
    r"(?P<path>[^=!<>]+?)\s*(?P<operator>!=|<=|>=|=|<|>)\s*(?P<value>.*)", re.DOTALL
)

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_AGO = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[smhdw])(?:\s+ago)?")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a field of the event's data, such as ``customer.id=7`` or ``total>100``."""

    path: tuple[str, ...]
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``field=value``; ``a.b`` is a field of a field, ``a.0`` the first of a list.

        Also with ``!=``, ``<``, ``<=``, ``>`` and ``>=``. Raises ConfigurationError.
        """
        found = _WRITTEN.fullmatch(text.strip())
        if found is None:
            raise ConfigurationError(
                f"can't read the condition {text!r}; write for example order_id=42, "
                "customer.country!=FR or total>100"
            )
        return cls(tuple(found["path"].strip().split(".")), found["operator"], found["value"])

    def holds(self, data: Any) -> bool:
        """Whether it holds for the event's data. A field that is not there is only ``!=``."""
        found = _field_of(data, self.path)
        if self.operator == "!=":
            return not _is(found, self.value)
        if self.operator == "=":
            return _is(found, self.value)
        return _in_order(found, self.value, _ORDERS[self.operator])

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}{self.operator}{self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters are meant; without anything, all of them.

    Of several values for one field one has to fit; the fields must all fit, `where` entirely.
    """

    groups: tuple[str, ...] = ()
    """Fingerprints, as `Letter.group` has them, or how they begin."""
    errors: tuple[str, ...] = ()
    """Exception types, with or without their module."""
    reasons: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    """Topics, or patterns in which ``*`` is one word and ``#`` any number of them."""
    ids: tuple[str, ...] = ()
    since: datetime | None = None
    """With a time zone, as `until`. Letters that failed before, or nobody knows when, don't fit."""
    until: datetime | None = None
    where: tuple[Condition, ...] = ()

    @property
    def is_everything(self) -> bool:
        return self == EVERYTHING

    def matches(self, letter: Letter) -> bool:
        """Whether the letter is meant."""
        failure = letter.failure
        return (
            _one_of(self.ids, lambda id: id == letter.id)
            and _one_of(self.reasons, lambda reason: reason == failure.reason)
            and _one_of(self.errors, lambda error: _is_error(failure.error_type, error))
            and _one_of(
                self.topics,
                lambda topic: letter.topic is not None and topic_matches(topic, letter.topic),
            )
            and self._is_in_time(letter.died_at)
            and (not self.groups or letter.group.startswith(self.groups))
            and (not self.where or self._holds(letter))
        )

    def __str__(self) -> str:
        """For people and logs: ``error=CardDeclined where=total>100``."""
        parts = []
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, datetime):
                parts.append(f"{one.name}={value.isoformat(timespec='seconds')}")
            elif value:
                name = one.name.removesuffix("s") if one.name != "where" else one.name
                parts += [f"{name}={single}" for single in value]
        return " ".join(parts) or "all"

    def _is_in_time(self, died_at: datetime | None) -> bool:
        if self.since is None and self.until is None:
            return True
        if died_at is None:
            return False
        return (self.since is None or self.since <= died_at) and (
            self.until is None or died_at <= self.until
        )

    def _holds(self, letter: Letter) -> bool:
        if letter.envelope is None:
            return False
        try:
            data = letter.envelope.value()
        except UndecodableError:
            return False
        return all(condition.holds(data) for condition in self.where)


EVERYTHING = LetterFilter()


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """A point in time: ISO 8601, local where it has no zone, or how long ago: ``2h``, ``3d ago``.

    Raises ConfigurationError.
    """
    written = text.strip()
    try:
        if (ago := _AGO.fullmatch(written)) is not None:
            since = timedelta(**{_UNITS[ago["unit"]]: float(ago["number"])})
            return (now or datetime.now(UTC)) - since
        return datetime.fromisoformat(written).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(
            f"can't read the time {text!r}; write for example 2026-11-23T14:00, "
            "2026-11-23T14:00Z, 2h or 3d ago"
        ) from error


def _one_of(wanted: tuple[str, ...], fits: Callable[[str], bool]) -> bool:
    return not wanted or any(fits(one) for one in wanted)


def _is_error(error_type: str | None, wanted: str) -> bool:
    return error_type is not None and (error_type == wanted or error_type.endswith(f".{wanted}"))


def _field_of(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if isinstance(data, dict) and name in data:
            data = data[name]
        elif isinstance(data, list) and name.isdecimal() and int(name) < len(data):
            data = data[int(name)]
        else:
            return _MISSING
    return data


def _is(found: Any, text: str) -> bool:
    if found is _MISSING:
        return False
    if isinstance(found, str) and found == text:
        return True
    try:
        meant = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    # In Python True is 1; in JSON it is not.
    return bool(found == meant) and isinstance(found, bool) == isinstance(meant, bool)


def _in_order(found: Any, text: str, order: Callable[[Any, Any], bool]) -> bool:
    one, other = _number(found), _number(text)
    if one is not None and other is not None:
        return order(one, other)
    return isinstance(found, str) and one is None and order(found, text)


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
