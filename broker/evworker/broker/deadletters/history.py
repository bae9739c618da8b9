"""The earlier deaths of a letter that was replayed: one bounded header, newest last."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pamqp.common import FieldValue

    from evworker.broker.failure import Failure

REMEMBERED = 10

HISTORY_HEADER = "evw-history"
REPLAYS_HEADER = "evw-replays"
REPLAYED_AT_HEADER = "evw-replayed-at"
EDIT_OF_HEADER = "evw-edit-of"

_LONGEST = 200  # characters, of which ten deaths with two texts each must fit beside the others
_ABSURD_REPLAYS = 2**31


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """Why and when a letter had died, before it was replayed."""

    at: datetime | None = None
    reason: str = "unknown"
    error_type: str | None = None
    error: str | None = None
    """The error's message, clipped."""
    attempts: int = 0
    replayed_at: datetime | None = None

    @classmethod
    def of(cls, failure: Failure, *, replayed_at: datetime) -> Self:
        return cls(
            at=failure.failed_at,
            reason=failure.reason,
            error_type=_clipped(failure.error_type),
            error=_clipped(failure.error_message),
            attempts=failure.attempts,
            replayed_at=replayed_at,
        )


def history_in(headers: Mapping[str, FieldValue]) -> tuple[Death, ...]:
    """What the header tells, oldest first; one that someone else has spoilt counts as absent."""
    written = headers.get(HISTORY_HEADER)
    if not isinstance(written, str):
        return ()
    try:
        return _decoder.decode(written)[-REMEMBERED:]
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return ()


def written(history: tuple[Death, ...]) -> str:
    """The header's value: JSON, the last ten deaths, each text in it clipped."""
    bounded = [
        msgspec.structs.replace(
            death,
            reason=_clipped(death.reason) or "unknown",
            error_type=_clipped(death.error_type),
            error=_clipped(death.error),
        )
        for death in history[-REMEMBERED:]
    ]
    return msgspec.json.encode(bounded).decode()


def replays_in(headers: Mapping[str, FieldValue]) -> int:
    """How often the letter was replayed."""
    replays = headers.get(REPLAYS_HEADER)
    return replays if isinstance(replays, int) and 0 < replays < _ABSURD_REPLAYS else 0


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


_decoder = msgspec.json.Decoder(tuple[Death, ...])
