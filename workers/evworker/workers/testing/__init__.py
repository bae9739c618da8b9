"""The kit for tests of your plugins: the real worker, a broker in memory, and what they did."""

from evworker.workers.testing.idempotence import assert_idempotent
from evworker.workers.testing.raising import NotSettledError
from evworker.workers.testing.records import DeliveryRecord, EventRecord, Records
from evworker.workers.testing.worker import TestWorker

__all__ = [
    "DeliveryRecord",
    "EventRecord",
    "NotSettledError",
    "Records",
    "TestWorker",
    "assert_idempotent",
]
