"""Things that go wrong on demand, each at a moment that a test can name.

Rules wait for publishes: `nth=1` is the next one that fits, and `times` is how many from there on.
Steps happen at once, to everybody who is connected.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evworker.broker.embedded.message import Entry, Message
from evworker.broker.embedded.refusals import Code, Refusal

if TYPE_CHECKING:
    from evworker.broker.embedded.channel import Answer
    from evworker.broker.embedded.server import EmbeddedBroker


class Fate(enum.Enum):
    """What becomes of a publish."""

    LOST = "the connection is cut, and the message is nowhere"
    UNCONFIRMED = "the message is in its queues, and the connection is cut before the confirm"
    REFUSED = "nacked, and in no queue"
    RETURNED = "as if nobody were bound to it"
    DOUBLED = "each of its queues gets it twice"


@dataclass
class _Rule:
    effect: Fate | Refusal
    nth: int
    times: int
    exchange: str | None
    routing_key: str | None

    def fits(self, exchange: str, routing_key: str) -> bool:
        if self.exchange not in (None, exchange) or self.routing_key not in (None, routing_key):
            return False
        self.nth -= 1
        return -self.times < self.nth <= 0


class Faults:
    """What goes wrong in one broker. Nothing does, until it is told to."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.publishes = 0
        """How many publishes have come so far, lost and refused ones included."""
        self.alarm: str | None = None
        """Why publishers are blocked, if they are."""
        self.is_deaf = False
        """Whether nothing that clients send is read."""
        self.latency_s = 0.0
        """How much later everything is sent; 0 is at once."""
        self._broker = broker
        self._rules: list[_Rule] = []
        self._withholds = False
        self._delay_s = 0.0
        self._withheld: list[Answer] = []
        self._reversals: dict[str, tuple[int, list[Message]]] = {}
        self._acks_to_lose: Counter[str] = Counter()

    # Rules

    def at_publish(
        self,
        fate: Fate | int,
        nth: int = 1,
        *,
        times: int = 1,
        exchange: str | None = None,
        routing_key: str | None = None,
        reason: str = "as was asked for",
    ) -> None:
        """Decide what becomes of the `nth` publish from now on, and of `times` from there on.

        Only those count that are for the exchange and have the routing key, if these are given. A
        code instead of a fate refuses the publish: it closes the channel, or the connection.
        """
        effect = fate if isinstance(fate, Fate) else Refusal(Code(fate), reason)
        self._rules.append(_Rule(effect, nth, times, exchange, routing_key))

    def reverse(self, queue: str, count: int = 2) -> None:
        """Confirm the next `count` messages for the queue, but let the last of them in first.

        They are kept from consumers until all of them have come.
        """
        self._reversals[queue] = (count, [])

    def deliver_twice(self, queue: str, times: int = 1) -> None:
        """Lose the acks of the next `times` messages of the queue, so that each comes again.

        At once, and as redelivered. One that came back already is not meant.
        """
        self._acks_to_lose[queue] += times

    # Steps

    def withhold_confirms(self) -> None:
        """Answer no publish, by a confirm or a return, until `release_confirms`."""
        self._withholds = True

    def release_confirms(self) -> None:
        """Send what was withheld, in the order of the publishes, and withhold no more."""
        self._withholds = False
        released, self._withheld = self._withheld, []
        for answer in released:
            answer.send()

    def delay_confirms(self, delay_s: float) -> None:
        """Answer each publish so many seconds later; 0 is at once again."""
        self._delay_s = delay_s

    def slow_down(self, latency_s: float) -> None:
        """Send everything so many seconds later; 0 is at once again."""
        self.latency_s = latency_s

    def stop_reading(self) -> None:
        """Read nothing more of what clients send, as a broker that hangs; heartbeats go on."""
        self.is_deaf = True
        self._go_on()

    def read_again(self) -> None:
        self.is_deaf = False
        self._go_on()

    def block(self, reason: str = "low on memory") -> None:
        """Raise the alarm: each connection is blocked, and told so, when it publishes next."""
        self.alarm = reason

    def unblock(self) -> None:
        """End the alarm; what was published meanwhile is taken now."""
        self.alarm = None
        self._go_on()

    def drop_connections(self) -> None:
        """Cut all connections, without a word. New ones are let in."""
        for client in self._broker.clients:
            client.drop()

    def go_away(self) -> None:
        """Cut all connections and let nobody in, as a node that crashed. Nothing is forgotten."""
        self._broker.stop_listening()
        self.drop_connections()

    async def come_back(self) -> None:
        """Listen again, on the same port. Raises OSError if somebody took it meanwhile."""
        await self._broker.start()

    def close_connections(self, code: int = 320, reason: str = "broker forced it") -> None:
        """Close all connections with this code."""
        for client in self._broker.clients:
            client.close(Refusal(Code(code), reason))

    def close_channels(
        self, code: int, reason: str = "as was asked for", *, queue: str | None = None
    ) -> None:
        """Close the channels that consume from the queue, or all, with this code."""
        for client in self._broker.clients:
            client.close_channels(Refusal(Code(code), reason), queue)

    def cancel_consumers(self, queue: str) -> None:
        """End the queue's subscriptions, as when its leader moves; the queue stays."""
        for each in self._broker.queues_named(queue):
            each.cancel_consumers()

    def _go_on(self) -> None:
        for client in self._broker.clients:
            client.go_on()

    # What the broker asks

    def of_publish(self, exchange: str, routing_key: str) -> Fate | Refusal | None:
        """What becomes of this publish: nothing but its way, as a rule."""
        self.publishes += 1
        fitting = [rule for rule in self._rules if rule.fits(exchange, routing_key)]
        self._rules = [rule for rule in self._rules if rule.nth > 1 - rule.times]
        return fitting[0].effect if fitting else None

    def answer(self, answer: Answer) -> None:
        """Send it, now or when it is time."""
        if self._withholds:
            self._withheld.append(answer)
        elif self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, answer.send)
        else:
            answer.send()

    def arrivals(self, queue: str, message: Message) -> Sequence[Message]:
        """What gets into the queue now that this message has come for it."""
        if queue not in self._reversals:
            return (message,)
        count, held = self._reversals[queue]
        held.append(message)
        if len(held) < count:
            return ()
        del self._reversals[queue]
        return held[::-1]

    def loses_ack(self, queue: str, entry: Entry) -> bool:
        """Whether this ack of a message is as if it had never come."""
        lost = self._acks_to_lose[queue] > 0 and not entry.returned
        self._acks_to_lose[queue] -= lost
        return lost
