"""featurespeed: send your architecture, get back the initialization scale and learning rate of every block.

The names below are loaded when they are first used, so that ``import featurespeed`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from featurespeed.version import __version__

if TYPE_CHECKING:
    from featurespeed.client import AsyncClient, Client
    from featurespeed.contract.report import Report
    from featurespeed.contract.request import JobRequest
    from featurespeed.contract.validation import SpecError
    from featurespeed.errors import (
        Conflict,
        DeadlineExceeded,
        FeaturespeedError,
        Forbidden,
        InvalidSpec,
        JobCancelled,
        JobFailed,
        NotFound,
        ParameterMismatch,
        ProblemError,
        RateLimited,
        ServerUnreachable,
        TooLarge,
        Unauthenticated,
    )
    from featurespeed.jobs import AsyncJob, Job

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "FeaturespeedError",
    "Forbidden",
    "InvalidSpec",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobRequest",
    "NotFound",
    "ParameterMismatch",
    "ProblemError",
    "RateLimited",
    "Report",
    "ServerUnreachable",
    "SpecError",
    "TooLarge",
    "Unauthenticated",
    "__version__",
]

_HOMES = {
    "AsyncClient": "featurespeed.client",
    "AsyncJob": "featurespeed.jobs",
    "Client": "featurespeed.client",
    "Job": "featurespeed.jobs",
    "JobRequest": "featurespeed.contract.request",
    "Report": "featurespeed.contract.report",
    "SpecError": "featurespeed.contract.validation",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "featurespeed.errors")), name)


def __dir__() -> list[str]:
    return __all__
