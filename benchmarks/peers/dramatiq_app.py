"""Dramatiq: threads that handle dicts; with confirms, or with BENCH_DEFAULTS=1 as it comes.

    python -m dramatiq benchmarks.peers.dramatiq_app
    python -m benchmarks.peers.dramatiq_app

It declares its queues itself, and knows classic ones only.
"""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.measured import THREADS, Assignment, publish_in_threads, watch_for

assignment = Assignment.given()
watch = watch_for(assignment)
broker = RabbitmqBroker(url=assignment.broker_url, confirm_delivery=assignment.is_tuned)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=assignment.queue)
def place(order: dict[str, Any]) -> None:
    watch.handled(order["order_id"])


if __name__ == "__main__":
    publish_in_threads(
        assignment,
        place.send,
        threads=THREADS if assignment.is_tuned and assignment.case == "publish" else 1,
    )
