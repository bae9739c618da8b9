"""A message on its way: what was published, and what became of it since."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from pamqp.common import FieldTable

from evworker.broker.embedded.content import Content
from evworker.broker.embedded.refusals import Code, Refusal


@dataclass(frozen=True, slots=True)
class Death:
    """Why, where and how often a message died: one line of its `x-death`."""

    queue: str
    reason: str
    count: int
    time: datetime
    exchange: str
    routing_keys: tuple[str, ...]
    original_expiration: str | None


@dataclass(frozen=True, eq=False)
class Message:
    """What was published. Each queue that it was routed to has it in an `Entry` of its own."""

    exchange: str
    routing_keys: tuple[str, ...]
    """The routing key, and those of the header CC."""
    content: Content
    body: bytes
    blind_keys: tuple[str, ...] = ()
    """Those of the header BCC, which nobody is told of."""
    deaths: tuple[Death, ...] = ()
    """Where it died before, the last first."""

    @cached_property
    def headers(self) -> FieldTable:
        return self.content.decoded_headers()

    @cached_property
    def ttl_s(self) -> float | None:
        """Seconds that it may wait. Raises Refusal for an expiration that is no number of them."""
        text = self.content.text("expiration")
        if not text:
            return None
        if not text.lstrip("-").isdecimal():
            raise Refusal(Code.PRECONDITION_FAILED, f"invalid expiration '{text}': no_integer")
        if text.startswith("-"):
            raise Refusal(
                Code.PRECONDITION_FAILED, f"invalid expiration '{text}': {{value_negative,{text}}}"
            )
        return int(text) / 1_000

    @cached_property
    def priority(self) -> int | None:
        return self.content.octet("priority")


@dataclass(slots=True, eq=False)
class Entry:
    """A message in one queue."""

    message: Message
    position: int
    """Its place among all that ever came into the queue."""
    expires_at: float | None = None
    returned: int = 0
    """How often it was delivered and came back."""

    @property
    def size(self) -> int:
        return len(self.message.body)
