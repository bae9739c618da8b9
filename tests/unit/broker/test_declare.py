"""Advice about what differs: it names what its reader can rename."""

from __future__ import annotations

import pytest

from evworker.broker import Exchange, Queue
from evworker.broker.declare import _explained

INEQUIVALENT = (
    "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': "
    "received none but current is the value '5' of type 'signedint'"
)


@pytest.mark.parametrize("text", [INEQUIVALENT, "PRECONDITION_FAILED - for some reason"])
@pytest.mark.parametrize("name", ["billing", "billing.dlq", "billing.retry.1h"])
def test_a_queue_of_a_family_is_renamed_by_its_work_queue(name: str, text: str) -> None:
    difference = _explained("queue", Queue(name, {}), text)
    assert difference.name == name
    assert 'queue="billing.v2"' in difference.advice


def test_an_exchange_is_named_with_its_option() -> None:
    advice = _explained("exchange", Exchange("events", "topic", {}), INEQUIVALENT).advice
    assert "--exchange" in advice
