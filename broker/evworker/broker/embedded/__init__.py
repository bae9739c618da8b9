"""A broker for tests and for a first try: AMQP 0-9-1 on a loopback socket, in memory, in this process."""

from evworker.broker.embedded.faults import Faults
from evworker.broker.embedded.server import EmbeddedBroker

__all__ = ["EmbeddedBroker", "Faults"]
