"""How a job may fail by the service's doing, not the spec's; ``docs/api.md`` lists all types."""

ATTEMPTS_EXHAUSTED = "attempts-exhausted"
INSUFFICIENT_RESOURCES = "insufficient-resources"
INTERNAL_ERROR = "internal-error"
"""Also the type of a problem on the wire."""
WORKER_CRASHED = "worker-crashed"
