"""The broker's version, and what follows from it.

Gate on the version and never on "the declare succeeded": unknown arguments are accepted silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from evworker.broker.errors import BrokerRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB = 1024 * 1024

_EMBEDDED = "evworker embedded"  # as embedded/connection.py has it, which is not for us to import


@dataclass(frozen=True, slots=True, order=True)
class BrokerVersion:
    """A RabbitMQ version. Supported are 3.10 and later."""

    major: int
    minor: int
    patch: int = 0
    is_embedded: bool = field(default=False, compare=False, kw_only=True)
    """Whether it is the broker of `evworker.broker.embedded`, which behaves as this version does
    and keeps nothing."""

    @classmethod
    def of(cls, server_properties: Mapping[str, object]) -> Self:
        """Read what the broker says of itself; raises BrokerRefusedError below RabbitMQ 3.10."""
        text = str(server_properties.get("version", ""))
        numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
        is_embedded = server_properties.get("product") == _EMBEDDED
        version = (
            cls(*map(int, numbers.groups(default="0")), is_embedded=is_embedded)
            if numbers
            else None
        )
        if version is None or version < cls(3, 10):
            product = server_properties.get("product", "the broker")
            raise BrokerRefusedError(
                f"{product} {text or 'of an unknown version'} can't keep evworker's promises: "
                "RabbitMQ 3.10 or later is needed, for quorum queues that dead-letter at least once"
            )
        return version

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def has_quorum_priorities(self) -> bool:
        """Strict priorities on quorum queues (https://www.rabbitmq.com/docs/quorum-queues#priorities)."""
        return (self.major, self.minor) >= (4, 3)

    @property
    def max_message_bytes(self) -> int:
        """The default of ``max_message_size``: 128 MiB, and 16 MiB from 4.0 on."""
        return 16 * _MIB if self.major >= 4 else 128 * _MIB
