"""What another program wrote into a trace does not come between relay and broker."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from evworker.broker import Envelope, Outbox
from evworker.broker.outbox.relay import Relay
from tests.broker.conftest import Bind, Take
from tests.broker.events import OrderPlaced
from tests.broker.outbox.written import states


async def test_a_trace_that_fits_no_frame_costs_no_connection(
    engine: AsyncEngine, broker_url: str, exchange: str, bind: Bind, take: Take
) -> None:
    queue = await bind("#")
    document = b'{"type": "foreign", "data": {}, "traceparent": "%s"}' % (b"x" * 200_000)
    cause = Envelope.parse(document)
    async with engine.begin() as connection:
        await Outbox().add(connection, OrderPlaced(order_id="42"), cause=cause)
        await Outbox().add_envelopes(connection, [cause])
    async with Relay(engine, broker_url, exchange=exchange) as relay:
        relayed = await relay.run_once()
    assert relayed.sent == 2
    assert await states(engine) == {}
    assert len(await take(queue)) == 2
