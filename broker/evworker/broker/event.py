"""Events: immutable typed values that know their own topic and version."""

from __future__ import annotations

from typing import Any, ClassVar, dataclass_transform

import msgspec

from evworker.broker.errors import ConfigurationError
from evworker.broker.topics import check_topic


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class EventType(msgspec.StructMeta):
    """The type of event types: takes ``topic`` and ``version`` in the class statement."""

    __topic__: str
    __version__: int

    def __new__(  # noqa: PYI034 - a metaclass makes no instance of Self
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],  # what the interpreter hands to every metaclass
        *,
        topic: str | None = None,
        version: int | None = None,
        **options: Any,  # msgspec's own: rename, tag, omit_defaults, …
    ) -> EventType:
        """Make the event type; raises InvalidTopicError or ConfigurationError."""
        if options.get("frozen", True) is not True:
            raise ConfigurationError(f"the event {name} can't be mutable: an event has happened")
        options = {"frozen": True, "kw_only": True, **options}
        cls = super().__new__(mcls, name, bases, namespace, **options)
        if topic is not None:
            cls.__topic__ = check_topic(topic)
            cls.__version__ = 1
        if version is not None:
            if not isinstance(version, int) or version < 1:
                raise ConfigurationError(
                    f"the event {name} has version={version!r}; a version is a number from 1 up"
                )
            cls.__version__ = version
        return cls


# Again, for type checkers that would otherwise take the rules of msgspec.Struct.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=EventType, frozen=True, kw_only=True):
    """Something that happened.

    Fields may be of any type that msgspec supports: Decimal, datetime, UUID, enums, nested structs,
    tagged unions, optionals. Unknown fields of a newer producer are ignored when an event is read.

    >>> class OrderPlaced(Event, topic="orders.placed", version=2):
    ...     order_id: str
    >>> OrderPlaced(order_id="42").__topic__
    'orders.placed'

    A subclass without ``topic`` inherits its parent's; a family of events can share fields through
    a parent that has no topic itself, which then can't be published.
    """

    __topic__: ClassVar[str] = ""
    __version__: ClassVar[int] = 1
