"""What a broker says no with: a code and a reason, which end a channel or the whole connection."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """AMQP's reply codes."""

    CONNECTION_FORCED = 320
    ACCESS_REFUSED = 403
    NOT_FOUND = 404
    RESOURCE_LOCKED = 405
    PRECONDITION_FAILED = 406
    FRAME_ERROR = 501
    SYNTAX_ERROR = 502
    COMMAND_INVALID = 503
    CHANNEL_ERROR = 504
    UNEXPECTED_FRAME = 505
    NOT_ALLOWED = 530
    NOT_IMPLEMENTED = 540
    INTERNAL_ERROR = 541


_ENDS_ITS_CHANNEL = {
    Code.ACCESS_REFUSED,
    Code.NOT_FOUND,
    Code.RESOURCE_LOCKED,
    Code.PRECONDITION_FAILED,
}


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request that the broker refuses; the code decides what it ends."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(f"{code.name} - {reason}")
        self.code = code

    @property
    def ends_connection(self) -> bool:
        return self.code not in _ENDS_ITS_CHANNEL
