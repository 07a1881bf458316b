"""The dispatcher: a process that takes jobs from the store and has them computed on Ray."""

import os

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # a local cluster listens on every interface
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "AUTOSCALER_METRIC_PORT": "-1",  # Ray's autoscaler asks no token for its metrics; it goes on where it cannot listen
}
"""Ray reads these once, when it is imported: hence here, before any module of this package."""

for _name, _value in LOCAL_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
