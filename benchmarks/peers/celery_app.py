"""Celery: late acks and prefetch 200, or with BENCH_DEFAULTS=1 as it comes.

python -m celery -A benchmarks.peers.celery_app worker
python -m benchmarks.peers.celery_app
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from benchmarks.peers.measured import (
    PREFETCH,
    THREADS,
    Assignment,
    publish_in_threads,
    watch_for,
)

assignment = Assignment.given()
watch = watch_for(assignment)
app = Celery("bench", broker=assignment.broker_url)
app.conf.update(
    task_queues=[
        Queue(
            assignment.queue,
            # A topic exchange is what Celery wants of quorum queues, for its delays.
            Exchange(assignment.queue, type="topic"),
            routing_key=assignment.queue,
            queue_arguments={"x-queue-type": assignment.queue_type},
        )
    ],
    task_default_queue=assignment.queue,
    task_default_exchange=assignment.queue,
    task_default_exchange_type="topic",
    task_default_routing_key=assignment.queue,
)
if assignment.is_tuned:
    app.conf.update(
        broker_transport_options={"confirm_publish": True},
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        worker_enable_remote_control=False,
    )


@app.task(name="bench.place")
def place(order: dict[str, Any]) -> None:
    watch.handled(order["order_id"])


if __name__ == "__main__":
    publish_in_threads(
        assignment,
        place.delay,
        threads=THREADS if assignment.is_tuned and assignment.case == "publish" else 1,
    )
