"""The methods that declare, bind, purge and delete: from the wire to the virtual host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pamqp import commands
from pamqp.base import Frame

from evworker.broker.embedded.exchanges import Exchange
from evworker.broker.embedded.queues import Queue
from evworker.broker.embedded.refusals import Code, Refusal

if TYPE_CHECKING:
    from evworker.broker.embedded.channel import Channel


def queue_named(channel: Channel, name: str) -> Queue:
    """The queue that a method means; without a name, the one that was declared last."""
    if not name and channel.last_queue is None:
        raise Refusal(Code.NOT_FOUND, "no previously declared queue")
    return channel.vhost.queue(name or channel.last_queue or "", channel.connection)


def _declare_exchange(channel: Channel, method: commands.Exchange.Declare) -> Frame:
    if method.passive:
        channel.vhost.exchange(method.exchange)
    else:
        exchange: Exchange[Queue] = Exchange(
            method.exchange,
            channel.vhost.title("exchange", method.exchange),
            method.exchange_type,
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
            arguments=method.arguments or {},
        )
        channel.vhost.declare_exchange(exchange)
    return commands.Exchange.DeclareOk()


def _delete_exchange(channel: Channel, method: commands.Exchange.Delete) -> Frame:
    channel.vhost.delete_exchange(method.exchange, if_unused=method.if_unused)
    return commands.Exchange.DeleteOk()


def _bind_exchange(channel: Channel, method: commands.Exchange.Bind) -> Frame:
    vhost = channel.vhost
    vhost.refuse_default(method.source)
    target = vhost.exchange(method.destination)
    vhost.bind(method.source, target, method.routing_key, method.arguments or {})
    return commands.Exchange.BindOk()


def _unbind_exchange(channel: Channel, method: commands.Exchange.Unbind) -> Frame:
    vhost = channel.vhost
    vhost.refuse_default(method.source, method.destination)
    if (target := vhost.exchanges.get(method.destination)) is not None:
        vhost.unbind(method.source, target, method.routing_key, method.arguments or {})
    return commands.Exchange.UnbindOk()


def _declare_queue(channel: Channel, method: commands.Queue.Declare) -> Frame:
    if method.passive:
        queue = queue_named(channel, method.queue)
        queue.used()
    else:
        queue = channel.vhost.declare_queue(
            method.queue,
            channel.connection,
            durable=method.durable,
            exclusive=method.exclusive,
            auto_delete=method.auto_delete,
            arguments=method.arguments or {},
        )
    channel.last_queue = queue.name
    return commands.Queue.DeclareOk(queue.name, len(queue.ready), len(queue.consumers))


def _bind_queue(channel: Channel, method: commands.Queue.Bind) -> Frame:
    channel.vhost.refuse_default(method.exchange)
    queue = queue_named(channel, method.queue)
    key = method.routing_key
    if not method.queue and not key:
        key = queue.name
    channel.vhost.bind(method.exchange, queue, key, method.arguments or {})
    return commands.Queue.BindOk()


def _unbind_queue(channel: Channel, method: commands.Queue.Unbind) -> Frame:
    vhost = channel.vhost
    vhost.refuse_default(method.exchange)
    name = method.queue or channel.last_queue or ""
    if name in vhost.queues:
        queue = vhost.queue(name, channel.connection)
        vhost.unbind(method.exchange, queue, method.routing_key, method.arguments or {})
    return commands.Queue.UnbindOk()


def _purge_queue(channel: Channel, method: commands.Queue.Purge) -> Frame:
    return commands.Queue.PurgeOk(queue_named(channel, method.queue).purge())


def _delete_queue(channel: Channel, method: commands.Queue.Delete) -> Frame:
    vhost = channel.vhost
    if (method.queue or channel.last_queue) not in vhost.queues:
        return commands.Queue.DeleteOk(0)
    queue = queue_named(channel, method.queue)
    if method.if_unused and queue.consumers:
        raise Refusal(Code.PRECONDITION_FAILED, f"{queue.title} in use")
    if method.if_empty and len(queue.ready):
        raise Refusal(Code.PRECONDITION_FAILED, f"{queue.title} not empty")
    return commands.Queue.DeleteOk(vhost.delete_queue(queue))


DECLARING: dict[type[Frame], Callable[[Channel, Any], Frame]] = {
    commands.Exchange.Declare: _declare_exchange,
    commands.Exchange.Delete: _delete_exchange,
    commands.Exchange.Bind: _bind_exchange,
    commands.Exchange.Unbind: _unbind_exchange,
    commands.Queue.Declare: _declare_queue,
    commands.Queue.Bind: _bind_queue,
    commands.Queue.Unbind: _unbind_queue,
    commands.Queue.Purge: _purge_queue,
    commands.Queue.Delete: _delete_queue,
}
