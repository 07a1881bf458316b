"""From exceptions to what a user sees: one line on standard error, and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from http import HTTPStatus

from typer.exceptions import TyperException

from featurespeed.contract.validation import SpecError
from featurespeed.errors import FeaturespeedError, JobCancelled, JobFailed, ProblemError, Unauthenticated

DONE, FAULT, BAD_INPUT, JOB_FAILED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit statuses; FAULT is an error in this program."""

DEBUG = "FEATURESPEED_DEBUG"
"""Environment variable: 1 shows tracebacks."""

_EXTRAS = {
    "workers": ("torch", "ray", "sklearn", "safetensors", "numpy"),
    "service": ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "starlette"),
    "plot": ("plotly", "matplotlib"),
    "cli": ("typer", "rich", "yaml"),
}


class LocalFailure(FeaturespeedError):
    """A job that ran in this process has failed."""


def report(error: BaseException) -> int:
    """Tell the user of ``error`` in one line; the exit status that it stands for."""
    status, message = explained(error)
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}" if status != INTERRUPTED else message, file=sys.stderr)
    if status == INTERRUPTED:
        # If Ctrl-C fell into code that was compiled from a string, as dataclasses are while torch is imported, CPython
        # has noted an unhandled interrupt, caught or not, and ``python -m`` dies of SIGINT whatever the status. The
        # note is cleared by the next such code.
        exec("")
    return status


def explained(error: BaseException) -> tuple[int, str]:
    """Exit status and message of an error."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED, "interrupted"
        case TyperException():
            return BAD_INPUT, f"{error.format_message()} (see featurespeed --help)"
        case SpecError():
            return BAD_INPUT, str(error)
        case JobFailed():
            return JOB_FAILED, error.error.detail
        case JobCancelled() | LocalFailure():
            return JOB_FAILED, str(error)
        case Unauthenticated():
            return BAD_INPUT, f"{error} (--api-key-file FILE, or FEATURESPEED_API_KEY)"
        case ProblemError():
            broken = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            return (UNREACHABLE if broken else BAD_INPUT), str(error)
        case FeaturespeedError():  # no answer, or none that can be read
            return UNREACHABLE, str(error)
        case MemoryError():
            return JOB_FAILED, "out of memory"
        case ModuleNotFoundError() if extra := _extra_of(error):
            return BAD_INPUT, f"{error.name} is not installed: pip install 'featurespeed[{extra}]'"
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return BAD_INPUT, f"{where}{error.strerror or error}"
    return FAULT, f"{type(error).__name__}: {error} (a fault in featurespeed; {DEBUG}=1 shows where)"


def _extra_of(error: ModuleNotFoundError) -> str | None:
    root = (error.name or "").partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if root in modules), None)
