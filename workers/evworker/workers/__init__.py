"""evworker's first floor: plugins, their consumers, and the worker that feeds them."""

from evworker.workers.consumer import AnyEvent, Consumer, Middleware, Next
from evworker.workers.context import Context, delivery_log_fields
from evworker.workers.doctor import examine
from evworker.workers.finding import Finding
from evworker.workers.killswitch import KillSwitch
from evworker.workers.outcome import Counts
from evworker.workers.plugin import Plugin, check_plugins, plan_topology
from evworker.workers.retry import (
    DeadLetter,
    Discard,
    HandlerTimeoutError,
    Retry,
    RetryAfter,
    exponential,
    fixed,
)
from evworker.workers.worker import PluginStartError, Worker

__all__ = [
    "AnyEvent",
    "Consumer",
    "Context",
    "Counts",
    "DeadLetter",
    "Discard",
    "Finding",
    "HandlerTimeoutError",
    "KillSwitch",
    "Middleware",
    "Next",
    "Plugin",
    "PluginStartError",
    "Retry",
    "RetryAfter",
    "Worker",
    "check_plugins",
    "delivery_log_fields",
    "examine",
    "exponential",
    "fixed",
    "plan_topology",
]
