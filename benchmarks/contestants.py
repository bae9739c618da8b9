"""Who is measured, in what, and how each is started: one line of the table a contestant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CASES = ("consume", "publish", "latency", "relay")
QUEUE_TYPES = ("classic", "quorum")

C_CONSUMER, C_PUBLISHER = "C ack each", "C window 200"
C_LIKE_EVWORKER = ("C on evworker's queue", "C on its plain queue", "C on evworker's exchange")
"""The same client with evworker's work for the broker: its messages, queues and exchange."""
AIO_PIKA = "aio-pika"
EVWORKER, PUBLISH_MANY = "evworker", "evworker publish_many"

QUICK = (EVWORKER, AIO_PIKA, C_CONSUMER, "C ack every 100", C_PUBLISHER)
TUNED = ("celery", "celery solo", "dramatiq", "faststream", "taskiq", "pika")
"""The peers as their manuals say that they are fast; the others beside them are their defaults."""


@dataclass(frozen=True)
class Peer:
    """Whose messages they are: it declares its own queues, and publishes in its own way.

    `queues` and `exchanges` are what it leaves on the broker, with {queue} for the queue's name.
    `traces` are names that we can't choose; of those, only what was not there before is removed.
    """

    queues: tuple[str, ...] = ("{queue}",)
    exchanges: tuple[str, ...] = ()
    queue_traces: tuple[str, ...] = ()
    exchange_traces: tuple[str, ...] = ()


_EVWORKER_LEAVES = Peer(
    queues=("{queue}", "{queue}.dlq", "{queue}.quarantine", "{queue}.events.unrouted"),
    exchanges=("{queue}.events", "{queue}.events.unrouted"),
)

_DELAYS = tuple(f"celery_delayed_{level}" for level in range(28))

PEERS: Mapping[str, Peer] = {
    "plain": Peer(),  # a body in JSON and no more, which the runner publishes itself
    "celery": Peer(
        exchanges=("{queue}",),
        queue_traces=_DELAYS,  # which it declares as soon as it sees a quorum queue
        exchange_traces=(
            *_DELAYS,
            "celery_delayed_delivery",
            "celeryev",
            "celery.pidbox",
            "reply.celery.pidbox",
        ),
    ),
    "dramatiq": Peer(queues=("{queue}", "{queue}.DQ", "{queue}.XQ")),
    "faststream": Peer(),
    "taskiq": Peer(queues=("{queue}", "{queue}.dead"), exchanges=("{queue}",)),
    "evworker": _EVWORKER_LEAVES,
    "evworker-plain": _EVWORKER_LEAVES,
}


@dataclass(frozen=True, eq=False)
class Contestant:
    """A peer with its settings.

    `environment` is where its packages are, or None for the project's own. `worker` consumes,
    `publisher` publishes, `relay` empties an outbox; {python} or {limit}, {case}, {url}, {queue},
    {messages}, {result}, {body} and {envelope} are filled in there. `rates` are about how many
    messages a second to expect of each case, which decides how many the first round has.
    """

    name: str
    peer: str
    environment: str | None
    rates: Mapping[str, int]
    worker: tuple[str, ...] = ()
    publisher: tuple[str, ...] = ()
    relay: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    queue_types: tuple[str, ...] = QUEUE_TYPES
    note: str = ""


def _module(name: str) -> tuple[str, ...]:
    return ("{python}", "-m", f"benchmarks.peers.{name}")


_C = ("{limit}", "{case}", "{url}", "{queue}", "{messages}", "{result}")
_CELERY = ("{python}", "-m", "celery", "-A", "benchmarks.peers.celery_app", "worker", "-c", "1")
_CELERY_QUIET = (*_CELERY, "--without-gossip", "--without-mingle", "--without-heartbeat")
_DRAMATIQ = ("{python}", "-m", "dramatiq", "benchmarks.peers.dramatiq_app", "--processes", "1")
_FASTSTREAM = ("{python}", "-m", "faststream", "run", "benchmarks.peers.faststream_app:app")
_TASKIQ = ("{python}", "-m", "taskiq", "worker", "benchmarks.peers.taskiq_app:broker")
_TASKIQ_ONE = (*_TASKIQ, "--workers", "1")
_EVWORKER = ("{python}", "-m", "evworker", "run", "benchmarks.peers.evworker_app:plugin")
_EVWORKER_QUIET = (*_EVWORKER, "--log-level", "warning")
_RELAY = (
    *("{python}", "-m", "benchmarks.relay", "--url", "{url}", "--events", "{messages}"),
    *("--queue-type", "{queue_type}"),
)
_DEFAULTS = {"BENCH_DEFAULTS": "1"}
_UVLOOP = {"BENCH_UVLOOP": "1"}
_LIBRARY_PATH = {"EVWORKER_FAST_LANE": "0"}
_PLAIN = {"BENCH_PLAIN": "1"}

CONTESTANTS: tuple[Contestant, ...] = (
    Contestant(
        C_CONSUMER, "plain", "limit", {"consume": 30_000}, worker=(*_C, "1"), note="librabbitmq"
    ),
    Contestant(
        "C ack every 100",
        "plain",
        "limit",
        {"consume": 40_000},
        worker=(*_C, "100"),
        note="librabbitmq, one cumulative ack for every 100 messages",
    ),
    Contestant(
        C_LIKE_EVWORKER[0],
        "evworker",
        "limit",
        {"consume": 40_000},
        worker=(*_C, "100"),
        note="the same C client, which takes what evworker takes: its messages, from its queue",
    ),
    Contestant(
        C_LIKE_EVWORKER[1],
        "evworker-plain",
        "limit",
        {"consume": 40_000},
        worker=(*_C, "100"),
        queue_types=("classic",),
        note="the same, from a classic queue without priorities",
    ),
    Contestant(
        C_PUBLISHER,
        "plain",
        "limit",
        {"publish": 20_000},
        publisher=(*_C, "200", "{body}"),
        note="librabbitmq, at most 200 confirms outstanding",
    ),
    Contestant(
        "C window 1000",
        "plain",
        "limit",
        {"publish": 20_000},
        publisher=(*_C, "1000", "{body}"),
        note="librabbitmq, at most 1,000 confirms outstanding",
    ),
    Contestant(
        EVWORKER,
        "evworker",
        None,
        {"consume": 20_000, "publish": 12_000, "latency": 200, "relay": 10_000},
        worker=_EVWORKER_QUIET,
        publisher=_module("evworker_app"),
        relay=(*_RELAY, "--side", "relay"),
        note="typed events in their envelopes, a context, a handler that does not suspend",
    ),
    Contestant(
        "evworker suspending",
        "evworker",
        None,
        {"consume": 15_000},
        worker=_EVWORKER_QUIET,
        variables={"BENCH_SUSPENDS": "1"},
        note="the same with a handler that awaits asyncio.sleep(0)",
    ),
    Contestant(
        "evworker library path",
        "evworker",
        None,
        {"consume": 20_000, "publish": 12_000, "latency": 200, "relay": 10_000},
        worker=_EVWORKER_QUIET,
        publisher=_module("evworker_app"),
        relay=(*_RELAY, "--side", "relay"),
        variables=_LIBRARY_PATH,
        note="EVWORKER_FAST_LANE=0: everything through aiormq",
    ),
    Contestant(
        "evworker plain queue",
        "evworker-plain",
        None,
        {"consume": 20_000},
        worker=_EVWORKER_QUIET,
        publisher=_module("evworker_app"),
        variables=_PLAIN,
        queue_types=("classic",),
        note="on a classic queue without priorities, which the others have and it never declares",
    ),
    Contestant(
        PUBLISH_MANY,
        "evworker",
        None,
        {"publish": 10_000, "relay": 20_000},
        publisher=_module("evworker_app"),
        relay=(*_RELAY, "--side", "publish_many"),
        variables={"BENCH_MANY": "1"},
        note="5,000 events a call; beside the relay its events, in one call and without a database",
    ),
    Contestant(
        "C with properties",
        "plain",
        "limit",
        {"publish": 12_000},
        publisher=(*_C, "200", "{body}", "", "{queue}"),
        note="as C window 200, with the properties of evworker's messages, which have an id",
    ),
    Contestant(
        "C past the exchange",
        "evworker",
        "limit",
        {"publish": 12_000},
        publisher=(*_C, "200", "{envelope}", "", "{queue}"),
        note="as C on evworker's exchange, but straight to its queue by the default exchange",
    ),
    Contestant(
        C_LIKE_EVWORKER[2],
        "evworker",
        "limit",
        {"publish": 12_000},
        publisher=(*_C, "200", "{envelope}", "{queue}.events", "orders.placed"),
        note="the same C client, which publishes what evworker does: its messages, to its exchange",
    ),
    Contestant(
        AIO_PIKA,
        "plain",
        "aio-pika",
        {"consume": 7_000, "publish": 8_000, "latency": 200},
        worker=_module("aio_pika_app"),
        publisher=_module("aio_pika_app"),
        note="a callback that decodes a typed order and acks it",
    ),
    Contestant(
        "aio-pika uvloop",
        "plain",
        "aio-pika",
        {"consume": 9_000, "publish": 9_000, "latency": 200},
        worker=_module("aio_pika_app"),
        publisher=_module("aio_pika_app"),
        variables=_UVLOOP,
    ),
    Contestant(
        "pika",
        "plain",
        "pika",
        {"consume": 16_000, "publish": 15_000, "latency": 200},
        worker=_module("pika_app"),
        publisher=_module("pika_app"),
        note="SelectConnection, a typed order; at most 200 confirms outstanding",
    ),
    Contestant(
        "pika blocking",
        "plain",
        "pika",
        {"consume": 14_000, "publish": 1_700},
        worker=_module("pika_app"),
        publisher=_module("pika_app"),
        variables=_DEFAULTS,
        note="BlockingConnection, which waits for each confirm",
    ),
    Contestant(
        "celery",
        "celery",
        "celery",
        {"consume": 2_200, "publish": 2_400, "latency": 200},
        worker=_CELERY_QUIET,
        publisher=_module("celery_app"),
        note="late acks, prefetch 200, no events; publishes from 8 threads, confirmed",
    ),
    Contestant(
        "celery solo",
        "celery",
        "celery",
        {"consume": 4_500},
        worker=(*_CELERY_QUIET, "--pool", "solo"),
        note="the same in one process, without its pool",
    ),
    Contestant(
        "celery defaults",
        "celery",
        "celery",
        {"consume": 2_400, "publish": 3_400, "latency": 200},
        worker=_CELERY,
        publisher=_module("celery_app"),
        variables=_DEFAULTS,
        note="acks before the task runs; publishes without confirms",
    ),
    Contestant(
        "dramatiq",
        "dramatiq",
        "dramatiq",
        {"consume": 5_000, "publish": 2_500, "latency": 200},
        worker=(*_DRAMATIQ, "--threads", "8"),
        publisher=_module("dramatiq_app"),
        variables={"dramatiq_queue_prefetch": "200"},
        queue_types=("classic",),
        note="8 threads, prefetch 200; publishes from 8 threads, confirmed",
    ),
    Contestant(
        "dramatiq defaults",
        "dramatiq",
        "dramatiq",
        {"consume": 3_500, "publish": 12_000, "latency": 200},
        worker=_DRAMATIQ,
        publisher=_module("dramatiq_app"),
        variables=_DEFAULTS,
        queue_types=("classic",),
        note="publishes without confirms",
    ),
    Contestant(
        "faststream",
        "faststream",
        "faststream-uvloop",
        {"consume": 4_500, "publish": 6_000, "latency": 200},
        worker=_FASTSTREAM,
        publisher=_module("faststream_app"),
        variables=_UVLOOP,
        note="msgspec, prefetch 200, no log, uvloop",
    ),
    Contestant(
        "faststream defaults",
        "faststream",
        "faststream",
        {"consume": 3_300, "publish": 6_000, "latency": 200},
        worker=_FASTSTREAM,
        publisher=_module("faststream_app"),
        variables=_DEFAULTS,
        note="pydantic, no limit of prefetch, two lines of log a message",
    ),
    Contestant(
        "taskiq",
        "taskiq",
        "taskiq-uvloop",
        {"consume": 4_500, "publish": 6_000, "latency": 200},
        worker=(*_TASKIQ_ONE, "--max-async-tasks", "200", "--log-level", "WARNING"),
        publisher=_module("taskiq_app"),
        variables=_UVLOOP,
        note="prefetch 200, no log, uvloop",
    ),
    Contestant(
        "taskiq defaults",
        "taskiq",
        "taskiq",
        {"consume": 3_300, "publish": 6_000, "latency": 200},
        worker=_TASKIQ_ONE,
        publisher=_module("taskiq_app"),
        variables=_DEFAULTS,
        note="prefetch 10, a line of log a message",
    ),
    Contestant(
        "relay by hand",
        "plain",
        None,
        {"relay": 5_000},
        relay=(*_RELAY, "--side", "by hand"),
        note="asyncpg, aio-pika: 500 rows locked, published and deleted in one transaction",
    ),
)
