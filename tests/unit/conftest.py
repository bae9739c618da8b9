"""Generated tests assert what is true, not how fast this machine is today."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "evworker", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("evworker")
