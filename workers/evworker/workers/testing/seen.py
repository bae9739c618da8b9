"""What a test is shown of what happened: the ledger, from its users' side."""

from __future__ import annotations

from evworker.workers.testing.ledger import Ledger
from evworker.workers.testing.records import DeliveryRecord, End, EventRecord, Records
from evworker.workers.testing.story import story


class Seen:
    """Everything that was published, and each delivery."""

    _ledger: Ledger

    @property
    def consumed(self) -> Records[DeliveryRecord]:
        """What handlers have handled: one record for each event and consumer."""
        return self._ended("handled")

    @property
    def published(self) -> Records[EventRecord]:
        """All events that the broker has taken, by whomever they were published."""
        return Records(self._ledger.published, self._ledger.consumers)

    @property
    def retried(self) -> Records[DeliveryRecord]:
        """The attempts that failed and were followed by another one."""
        return self._ended("retried")

    @property
    def dead_letters(self) -> Records[DeliveryRecord]:
        """What became a dead letter, with the reason."""
        return self._ended("dead-lettered")

    @property
    def discarded(self) -> Records[DeliveryRecord]:
        """What a handler or its policy has discarded."""
        return self._ended("discarded")

    @property
    def duplicates(self) -> Records[DeliveryRecord]:
        """What transactional consumers had applied before."""
        return self._ended("duplicate")

    @property
    def deliveries(self) -> Records[DeliveryRecord]:
        """All of them, however they ended, in the order in which they came."""
        return Records(self._ledger.deliveries, self._ledger.consumers)

    @property
    def unrouted(self) -> Records[EventRecord]:
        """The events that no consumer of the worker wants."""
        unwanted = (record for record in self._ledger.published if not record.has_consumer)
        return Records(unwanted, self._ledger.consumers)

    @property
    def story(self) -> str:
        """What caused what, as a tree; to be printed."""
        return story(self._ledger)

    def _ended(self, end: End) -> Records[DeliveryRecord]:
        ended = (record for record in self._ledger.deliveries if record.end == end)
        return Records(ended, self._ledger.consumers)
