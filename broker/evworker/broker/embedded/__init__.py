"""A broker for tests and a first try: AMQP 0-9-1 on a loopback socket, in memory."""

from evworker.broker.embedded.faults import Fate, Faults
from evworker.broker.embedded.server import EmbeddedBroker

__all__ = ["EmbeddedBroker", "Fate", "Faults"]
