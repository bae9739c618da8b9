"""A virtual host: exchanges and queues by name, and the way of a message between them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from pamqp.common import FieldTable

from evworker.broker.embedded.arguments import (
    check_equivalent,
    inequivalent,
    read_arguments,
)
from evworker.broker.embedded.clock import Clock
from evworker.broker.embedded.deadlettering import dead_letter, is_cycle
from evworker.broker.embedded.exchanges import Binding, Exchange, check_match
from evworker.broker.embedded.faults import Faults
from evworker.broker.embedded.message import Message
from evworker.broker.embedded.queues import Queue, QueueOwner
from evworker.broker.embedded.refusals import Code, Refusal

_PREDECLARED = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}
_LOCKED = (
    "cannot obtain exclusive access to locked {what}. It could be originally declared on another "
    "connection or the exclusive property value does not match that of the original declaration."
)


class VirtualHost:
    """All that there is under one name. Every method raises Refusal for what may not be."""

    def __init__(self, name: str, faults: Faults, clock: Clock) -> None:
        self.name = name
        self.exchanges: dict[str, Exchange[Queue]] = {
            each: Exchange(each, self.title("exchange", each), kind)
            for each, kind in _PREDECLARED.items()
        }
        self.queues: dict[str, Queue] = {}
        self._faults = faults
        self._owner = QueueOwner(self._dead_letter, self.delete_queue, clock)

    # The way of a message

    def publish(self, message: Message) -> tuple[bool, bool]:
        """Whether any queue was found for it, and whether all that were found took it."""
        queues = self._route(message, message.exchange)
        accepted = True
        for queue in queues:
            for arrival in self._faults.arrivals(queue.name, message):
                accepted = queue.publish(arrival) and accepted
        return bool(queues), accepted

    def _route(self, message: Message, exchange: str) -> list[Queue]:
        """The queues that the message goes to, each once."""
        if not exchange:
            keys = message.routing_keys + message.blind_keys
            found = (self.queues.get(key) for key in keys)
            return list(dict.fromkeys(queue for queue in found if queue is not None))
        queues: dict[Queue, None] = {}
        seen = {exchange}
        names = [exchange]
        while names:
            name = names.pop(0)
            source = self.exchanges.get(name)
            if source is None:
                continue
            nobody = True
            for destination in source.destinations(message):
                nobody = False
                if isinstance(destination, Queue):
                    queues[destination] = None
                elif destination.name not in seen:
                    seen.add(destination.name)
                    names.append(destination.name)
            other = source.alternate
            if nobody and other is not None and other not in seen:
                seen.add(other)
                names.append(other)
        return list(queues)

    def _dead_letter(self, queue: Queue, message: Message, reason: str) -> bool:
        settings = queue.settings
        letter = dead_letter(
            message,
            queue=queue.name,
            reason=reason,
            now=datetime.now(UTC),
            exchange=settings.dead_letter_exchange or "",
            routing_key=settings.dead_letter_routing_key,
        )
        targets = [
            target
            for target in self._route(letter, letter.exchange)
            if not is_cycle(letter, target.name, reason)
        ]
        taken = [target.publish(letter) for target in targets]
        return bool(taken) and all(taken)

    # Exchanges

    def exchange(self, name: str) -> Exchange[Queue]:
        """The exchange of this name, which is not the default one."""
        self.refuse_default(name)
        if name not in self.exchanges:
            raise Refusal(Code.NOT_FOUND, f"no {self.title('exchange', name)}")
        return self.exchanges[name]

    def declare_exchange(self, declared: Exchange[Queue]) -> None:
        name = declared.name
        self.refuse_default(name)
        current = self.exchanges.get(name)
        what = self.title("exchange", name)
        if current is None:
            self._refuse_reserved("exchange", name)
            other = declared.arguments.get("alternate-exchange", "")
            if not isinstance(other, str):
                kind = type(other).__name__
                raise Refusal(
                    Code.PRECONDITION_FAILED,
                    f"invalid type '{kind}' for arg 'alternate-exchange' in {what}",
                )
            self.exchanges[name] = declared
            return
        _same(what, "type", declared.kind, current.kind)
        _same(what, "durable", declared.durable, current.durable)
        _same(what, "auto_delete", declared.auto_delete, current.auto_delete)
        _same(what, "internal", declared.internal, current.internal)
        if declared.alternate != current.alternate:
            one, other = (
                f"the value '{each.alternate}' of type 'longstr'" if each.alternate else "none"
                for each in (declared, current)
            )
            raise inequivalent("alternate-exchange", what, one, other)

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """What is not there is deleted already."""
        self.refuse_default(name)
        what = self.title("exchange", name)
        if name.startswith("amq.") and name in self.exchanges:
            raise Refusal(Code.ACCESS_REFUSED, f"deletion of system {what} not allowed")
        exchange = self.exchanges.get(name)
        if exchange is None:
            return
        if if_unused and exchange.bindings:
            raise Refusal(Code.PRECONDITION_FAILED, f"{what} in use")
        del self.exchanges[name]
        self._unbind_everywhere(exchange)

    def bind(
        self, source: str, destination: Queue | Exchange[Queue], key: str, arguments: FieldTable
    ) -> None:
        exchange = self.exchange(source)
        if exchange.kind == "headers":
            check_match(arguments)
        exchange.bind(Binding(destination, key, arguments))

    def unbind(
        self, source: str, destination: Queue | Exchange[Queue], key: str, arguments: FieldTable
    ) -> None:
        """What is not bound is unbound already."""
        exchange = self.exchanges.get(source)
        if exchange is not None and exchange.unbind(Binding(destination, key, arguments)):
            self._delete_if_unused(exchange)

    # Queues

    def queue(self, name: str, owner: object) -> Queue:
        """The queue of this name, for this connection."""
        queue = self.queues.get(name)
        what = self.title("queue", name)
        if queue is None:
            raise Refusal(Code.NOT_FOUND, f"no {what}")
        if queue.exclusive_to not in (None, owner):
            raise Refusal(Code.RESOURCE_LOCKED, _LOCKED.format(what=what))
        return queue

    def declare_queue(
        self,
        name: str,
        owner: object,
        *,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: FieldTable,
    ) -> Queue:
        what = self.title("queue", name)
        self._refuse_reserved("queue", name)
        if name in self.queues:
            queue = self.queue(name, owner)
            if exclusive != (queue.exclusive_to is not None):
                raise Refusal(Code.RESOURCE_LOCKED, _LOCKED.format(what=what))
            _same(what, "durable", durable, queue.durable)
            _same(what, "auto_delete", auto_delete, queue.auto_delete)
            check_equivalent(arguments, queue.arguments, what)
            queue.used()
            return queue
        settings = read_arguments(arguments, what)
        if settings.is_quorum:
            self._refuse_for_quorum(
                name, durable=durable, auto_delete=auto_delete, exclusive=exclusive
            )
        name = name or f"amq.gen-{uuid.uuid4().hex[:22]}"
        queue = Queue(
            name,
            settings,
            self._owner,
            title=self.title("queue", name),
            arguments=arguments,
            durable=durable,
            auto_delete=auto_delete,
            exclusive_to=owner if exclusive else None,
        )
        self.queues[name] = queue
        return queue

    def delete_queue(self, queue: Queue) -> int:
        """How many messages were in it."""
        if self.queues.pop(queue.name, None) is None:
            return 0
        self._unbind_everywhere(queue)
        count = len(queue.ready)
        queue.close()
        return count

    def delete_queues_of(self, owner: object) -> None:
        """The exclusive ones of a connection that is no more."""
        for queue in [each for each in self.queues.values() if each.exclusive_to is owner]:
            self.delete_queue(queue)

    def close(self) -> None:
        """Be no more, with all that is in it."""
        for queue in self.queues.values():
            queue.close()

    def _unbind_everywhere(self, destination: Queue | Exchange[Queue]) -> None:
        for exchange in [*self.exchanges.values()]:
            if exchange.unbind_all(destination):
                self._delete_if_unused(exchange)

    def _delete_if_unused(self, exchange: Exchange[Queue]) -> None:
        if exchange.auto_delete and not exchange.bindings:
            self.delete_exchange(exchange.name, if_unused=False)

    def title(self, kind: str, name: str) -> str:
        """What refusals call an exchange or a queue."""
        return f"{kind} '{name}' in vhost '{self.name}'"

    def refuse_default(self, *exchanges: str) -> None:
        """Raises Refusal if one of them is the exchange without a name."""
        if "" in exchanges:
            raise Refusal(Code.ACCESS_REFUSED, "operation not permitted on the default exchange")

    def _refuse_reserved(self, kind: str, name: str) -> None:
        if name.startswith("amq."):
            raise Refusal(
                Code.ACCESS_REFUSED, f"{kind} name '{name}' contains reserved prefix 'amq.*'"
            )

    def _refuse_for_quorum(
        self, name: str, *, durable: bool, auto_delete: bool, exclusive: bool
    ) -> None:
        if not name:
            raise Refusal(
                Code.PRECONDITION_FAILED,
                "Cannot declare a server-named queue for type rabbit_quorum_queue",
            )
        for wrong, told in (
            (not durable, "non-durable"),
            (exclusive, "exclusive-owner"),
            (auto_delete, "auto-delete"),
        ):
            if wrong:
                raise Refusal(
                    Code.PRECONDITION_FAILED,
                    f"invalid property '{told}' for {self.title('queue', name)}",
                )


def _same(what: str, argument: str, received: object, current: object) -> None:
    if received != current:
        raise inequivalent(
            argument, what, f"'{str(received).lower()}'", f"'{str(current).lower()}'"
        )
