"""A letter as it is shown: the same at each look, whatever it lacks."""

from __future__ import annotations

import msgspec
import pytest
from aiormq import spec
from aiormq.abc import DeliveredMessage
from pamqp.header import ContentHeader

from evworker.broker import Letter
from evworker.cli import letters
from evworker.cli.rendering import escaped, printable
from tests.broker.deadletters.letters import failed


def nameless() -> Letter:
    """An event without an id and a time, as any AMQP client may have sent it."""
    properties = spec.Basic.Properties(headers=failed().to_headers())
    body = b'{"order_id": "1"}'
    return Letter.read(
        DeliveredMessage(
            delivery=spec.Basic.Deliver(consumer_tag="c", delivery_tag=1, routing_key="q.dlq"),
            header=ContentHeader(properties=properties, body_size=len(body)),
            body=body,
            channel=None,  # type: ignore[arg-type]  # it is only read
        ),
        position=1,
    )


def test_what_was_made_up_as_it_was_read_is_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = (msgspec.json.encode(letters.as_json(nameless())) for _ in range(2))
    assert first == second
    told = msgspec.json.decode(first)
    assert told["id"] is None
    assert told["envelope"] == {
        "specversion": "1.0",
        "source": "unknown",
        "type": "orders.placed",
        "time": "2026-11-23T12:00:00Z",
        "data": {"order_id": "1"},
    }
    letters.show("q.dlq", [nameless()])
    shown = capsys.readouterr().out
    assert "orders.placed  without id" in shown
    assert '"id"' not in shown


@pytest.mark.parametrize("mark", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_marks_that_reorder_what_is_shown_are_shown_themselves(mark: str) -> None:
    told = f"paid {mark}9.90\t€, naïve عربي"
    assert printable(told) == told.replace(mark, f"\\u{ord(mark):04x}")
    assert escaped(mark.encode()) == f"\\u{ord(mark):04x}"
