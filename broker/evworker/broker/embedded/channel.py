"""A channel: publishes and their confirms, deliveries and their settlement."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pamqp import commands
from pamqp.base import Frame
from pamqp.commands import Basic

from evworker.broker.embedded.content import BASIC_CLASS, Content, encoded_long
from evworker.broker.embedded.declaring import DECLARING, queue_named
from evworker.broker.embedded.faults import Fate
from evworker.broker.embedded.message import Entry, Message
from evworker.broker.embedded.queues import Consumer, Queue
from evworker.broker.embedded.refusals import Code, Refusal
from evworker.broker.embedded.unsettled import Held, Unsettled, give_back

if TYPE_CHECKING:
    from evworker.broker.embedded.connection import Connection

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""As in RabbitMQ 4.0."""

_SHORTEST_HEADER = 14


@dataclass(slots=True)
class _Incoming:
    """A publish of which a part is still to come."""

    method: Basic.Publish
    content: Content | None = None
    missing: int = 0
    parts: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to a publish, which faults may hold back: a return, a confirm, or both."""

    channel: Channel
    returned: Message | None
    confirm: Basic.Ack | Basic.Nack | None

    def send(self) -> None:
        if self.channel.is_closed:
            return
        if (message := self.returned) is not None:
            method = Basic.Return(312, "NO_ROUTE", message.exchange, message.routing_keys[0])
            self.channel.send(method, message.content, message.body)
        if self.confirm is not None:
            self.channel.send(self.confirm)


class Channel:
    """One channel of a connection. What comes on it raises Refusal."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.vhost = connection.vhost
        self.last_queue: str | None = None
        """The queue that was declared last, for methods that name none."""
        self.consumers: dict[str, Consumer] = {}
        self.is_closed = False
        self._incoming: _Incoming | None = None
        self._confirms = False
        self._published = 0
        self._delivered = 0
        self._unsettled = Unsettled()
        self._prefetch = 0
        self._prefetch_of_all = 0

    def send(self, method: Frame, content: Content | None = None, body: bytes = b"") -> None:
        self.connection.send(self.number, method, content, body)

    # What comes

    def on_method(self, method: Frame) -> None:
        if self._incoming is not None:
            self._unexpected(self._incoming, "method")
        if (declare := DECLARING.get(type(method))) is not None:
            answer: Frame | None = declare(self, method)
        elif (handle := self._HANDLERS.get(type(method))) is not None:
            answer = handle(self, method)
        else:
            raise Refusal(Code.COMMAND_INVALID, "unimplemented method")
        if answer is not None and not getattr(method, "nowait", False):
            self.send(answer)

    def on_header(self, payload: bytes) -> None:
        incoming = self._incoming
        if incoming is None or incoming.content is not None:
            self._unexpected(incoming, "header")
        if (found := int.from_bytes(payload[:2])) != BASIC_CLASS:
            wanted = f"expected content header for class {BASIC_CLASS}"
            raise Refusal(Code.UNEXPECTED_FRAME, f"{wanted}, got one for class {found} instead")
        if len(payload) < _SHORTEST_HEADER:
            raise Refusal(Code.FRAME_ERROR, f"cannot decode {payload!r}")
        incoming.missing = int.from_bytes(payload[4:12])
        if incoming.missing > MAX_MESSAGE_BYTES:
            raise Refusal(
                Code.PRECONDITION_FAILED,
                f"message size {incoming.missing} is larger than configured max size "
                f"{MAX_MESSAGE_BYTES}",
            )
        incoming.content = Content(payload[12:])
        self._publish_if_complete(incoming)

    def on_body(self, payload: bytes) -> None:
        incoming = self._incoming
        if incoming is None or incoming.content is None:
            self._unexpected(incoming, "body")
        incoming.missing -= len(payload)
        if incoming.missing < 0:
            raise Refusal(Code.FRAME_ERROR, "a body is longer than its header said")
        incoming.parts.append(payload)
        self._publish_if_complete(incoming)

    def _unexpected(self, incoming: _Incoming | None, found: str) -> NoReturn:
        if incoming is None:
            raise Refusal(
                Code.UNEXPECTED_FRAME, "expected method frame, got non method frame instead"
            )
        wanted = "header" if incoming.content is None else "body"
        got = found if found != "method" else f"non content {wanted} frame"
        raise Refusal(
            Code.UNEXPECTED_FRAME,
            f"expected content {wanted} for class {BASIC_CLASS}, got {got} instead",
        )

    # Publishing

    def _on_publish(self, method: Basic.Publish) -> None:
        if method.immediate:
            raise Refusal(Code.NOT_IMPLEMENTED, "immediate=true")
        self._incoming = _Incoming(method)
        self.connection.publishes()

    def _publish_if_complete(self, incoming: _Incoming) -> None:
        if incoming.missing or incoming.content is None:
            return
        self._incoming = None
        method, content = incoming.method, incoming.content
        if method.exchange and self.vhost.exchange(method.exchange).internal:
            title = self.vhost.exchange(method.exchange).title
            raise Refusal(Code.ACCESS_REFUSED, f"cannot publish to internal {title}")
        user = content.text("user_id")
        if user not in (None, self.connection.user):
            raise Refusal(
                Code.PRECONDITION_FAILED,
                f"user_id property set to '{user}' but authenticated user was "
                f"'{self.connection.user}'",
            )
        keys: tuple[str, ...] = (method.routing_key,)
        blind: tuple[str, ...] = ()
        headers = content.headers()  # refused now, if it is no table: nobody can refuse it later
        if b"CC" in headers or b"BCC" in headers:
            keys, blind = (*keys, *content.texts("CC")), content.texts("BCC")
            content = content.with_headers({}, dropped=("BCC",))
        message = Message(method.exchange, keys, content, b"".join(incoming.parts), blind)
        _ = message.ttl_s  # refused, if it is none
        self._published += 1
        self._publish(message, self._published, mandatory=method.mandatory)

    def _publish(self, message: Message, tag: int, *, mandatory: bool) -> None:
        fault = self.connection.faults.of_publish(message.exchange, message.routing_keys[0])
        match fault:
            case Refusal():
                raise fault
            case Fate.LOST:
                self.connection.drop()
                return
            case Fate.REFUSED:
                routed, accepted = True, False
            case Fate.RETURNED:
                routed, accepted, mandatory = False, True, True
            case _:
                routed, accepted = self.vhost.publish(message)
                if fault is Fate.DOUBLED:
                    self.vhost.publish(message)
        if fault is Fate.UNCONFIRMED:
            self.connection.drop()
            return
        returned = message if mandatory and not routed else None
        confirm = (Basic.Ack(tag) if accepted else Basic.Nack(tag)) if self._confirms else None
        if returned or confirm:
            self.connection.faults.answer(Answer(self, returned, confirm))

    def _on_confirm_select(self, _method: commands.Confirm.Select) -> Frame:
        if not self._confirms:
            self._confirms = True
            self._published = 0
        return commands.Confirm.SelectOk()

    # Consuming

    def _on_qos(self, method: Basic.Qos) -> Frame:
        if method.prefetch_size:
            raise Refusal(Code.NOT_IMPLEMENTED, f"prefetch_size!=0 ({method.prefetch_size})")
        if method.global_:
            self._prefetch_of_all = method.prefetch_count
            self.serve_all()
        else:
            self._prefetch = method.prefetch_count
        return Basic.QosOk()

    def _on_consume(self, method: Basic.Consume) -> None:
        queue = queue_named(self, method.queue)
        tag = method.consumer_tag or f"amq.ctag-{uuid.uuid4().hex[:22]}"
        if tag in self.consumers:
            raise Refusal(Code.NOT_ALLOWED, f"attempt to reuse consumer tag '{tag}'")
        if self._prefetch_of_all and queue.settings.is_quorum:
            raise Refusal(Code.NOT_IMPLEMENTED, f"{queue.title} does not support global qos")
        priority = (method.arguments or {}).get("x-priority", 0)
        if not isinstance(priority, int):
            reason = f"invalid arg 'x-priority' for {queue.title}: expected an integer"
            raise Refusal(Code.PRECONDITION_FAILED, reason)
        consumer = Consumer(
            tag, queue, self, method.no_ack, method.exclusive, priority, self._prefetch
        )
        queue.add(consumer)
        self.consumers[tag] = consumer
        if not method.nowait:
            self.send(Basic.ConsumeOk(tag))
        queue.dispatch()

    def _on_cancel(self, method: Basic.Cancel) -> Frame:
        consumer = self.consumers.pop(method.consumer_tag or "", None)
        if consumer is not None:
            consumer.queue.remove(consumer)
            consumer.queue.dispatch()
        return Basic.CancelOk(method.consumer_tag)

    def _on_get(self, method: Basic.Get) -> None:
        queue = queue_named(self, method.queue)
        if queue.settings.single_active_consumer and queue.settings.is_quorum:
            raise Refusal(
                Code.RESOURCE_LOCKED,
                f"cannot obtain access to locked {queue.title}. basic.get operations are not "
                "supported by quorum queues with single active consumer",
            )
        entry = queue.get()
        if entry is None:
            self.send(Basic.GetEmpty())
            return
        tag = self._remember(queue, entry, None, no_ack=method.no_ack)
        message = entry.message
        answer = Basic.GetOk(
            tag, entry.returned > 0, message.exchange, message.routing_keys[0], len(queue.ready)
        )
        self.send(answer, _delivered_content(queue, entry), message.body)

    def can_take(self, consumer: Consumer) -> bool:
        if not self.connection.is_writable:
            return False
        if consumer.no_ack:
            return True
        if 0 < self._prefetch_of_all <= len(self._unsettled):
            return False
        return not consumer.prefetch or consumer.unsettled < consumer.prefetch

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        tag = self._remember(consumer.queue, entry, consumer, no_ack=consumer.no_ack)
        message = entry.message
        method = Basic.Deliver(
            consumer.tag, tag, entry.returned > 0, message.exchange, message.routing_keys[0]
        )
        self.send(method, _delivered_content(consumer.queue, entry), message.body)

    def cancelled(self, consumer: Consumer) -> None:
        self.consumers.pop(consumer.tag, None)
        if self.connection.can("consumer_cancel_notify"):
            self.send(Basic.Cancel(consumer.tag, nowait=True))

    def _remember(
        self, queue: Queue, entry: Entry, consumer: Consumer | None, *, no_ack: bool
    ) -> int:
        self._delivered += 1
        if not no_ack:
            self._unsettled.add(self._delivered, Held(queue, entry, consumer))
        return self._delivered

    # Settlement

    def _on_ack(self, method: Basic.Ack) -> None:
        settled = self._unsettled.take(method.delivery_tag, multiple=method.multiple)
        lost = self.connection.faults.loses_ack
        give_back(each for each in settled if lost(each.queue.name, each.entry))
        self._serve(settled)

    def _on_nack(self, method: Basic.Nack) -> None:
        self._settle(method.delivery_tag, multiple=method.multiple, requeue=method.requeue)

    def _on_reject(self, method: Basic.Reject) -> None:
        self._settle(method.delivery_tag or 0, multiple=False, requeue=method.requeue)

    def _settle(self, tag: int, *, multiple: bool, requeue: bool) -> None:
        settled = self._unsettled.take(tag, multiple=multiple)
        if requeue:
            give_back(settled)
        else:
            for each in settled:
                each.queue.reject(each.entry)
        self._serve(settled)

    def _serve(self, settled: Iterable[Held]) -> None:
        """Somebody has room again."""
        if self._prefetch_of_all:
            self.serve_all()
            return
        for queue in dict.fromkeys(each.queue for each in settled if each.consumer):
            queue.dispatch()

    def serve_all(self) -> None:
        """Any consumer may have room again."""
        for queue in dict.fromkeys(each.queue for each in self.consumers.values()):
            queue.dispatch()

    def _on_recover(self, method: Basic.Recover) -> None:
        if not method.requeue:
            raise Refusal(Code.NOT_IMPLEMENTED, "requeue=false")
        self.send(Basic.RecoverOk())
        settled = self._unsettled.take(0, multiple=True)
        give_back(settled)
        self._serve(settled)

    @property
    def unsettled(self) -> Iterable[Queue]:
        """The queue of each delivery that nobody has settled yet."""
        return self._unsettled.queues

    # The end

    def _on_flow(self, method: commands.Channel.Flow) -> Frame:
        if not method.active:
            raise Refusal(Code.NOT_IMPLEMENTED, "active=false")
        return commands.Channel.FlowOk(active=True)

    def end(self) -> None:
        """Be closed: what was delivered and not settled goes back. Nothing is sent."""
        if self.is_closed:
            return
        self.is_closed = True
        gone = [*self.consumers.values()]
        self.consumers.clear()
        for consumer in gone:
            consumer.queue.remove(consumer)
        give_back(self._unsettled.take(0, multiple=True))
        for consumer in gone:
            consumer.queue.dispatch()

    _HANDLERS: ClassVar[dict[type[Frame], Callable[[Channel, Any], Frame | None]]] = {
        Basic.Publish: _on_publish,
        Basic.Ack: _on_ack,
        Basic.Nack: _on_nack,
        Basic.Reject: _on_reject,
        Basic.Get: _on_get,
        Basic.Consume: _on_consume,
        Basic.Cancel: _on_cancel,
        Basic.Qos: _on_qos,
        Basic.Recover: _on_recover,
        commands.Confirm.Select: _on_confirm_select,
        commands.Channel.Flow: _on_flow,
    }


def _delivered_content(queue: Queue, entry: Entry) -> Content:
    content = entry.message.content
    if not entry.returned or not queue.settings.is_quorum:
        return content
    return content.with_headers({"x-delivery-count": encoded_long(entry.returned)})
