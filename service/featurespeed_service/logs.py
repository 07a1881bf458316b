"""Logs, in one place for API and dispatcher: a JSON object a line, or for people at a terminal, on standard error.

``log = logs.get(__name__)``, then ``log.warning("lease lost", job_id=…)``. What a line says about the request that it
belongs to, and the id of a job that its text names, are added here; passwords and keys are taken out here.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from contextvars import ContextVar
from io import TextIOBase
from typing import Any, TextIO, cast

import structlog
from structlog.stdlib import BoundLogger, LoggerFactory, ProcessorFormatter
from structlog.typing import EventDict, Processor

from featurespeed_service.settings import Settings

request_scope: ContextVar[dict[str, Any] | None] = ContextVar("request_scope", default=None)
"""The ASGI scope of the request that is being answered."""

REQUEST_ID = "featurespeed.request_id"
"""Where a scope has the request's id."""
SPAN = "featurespeed.span"
"""Where a scope has the request's span, if requests are traced."""
LONGEST = 200
"""Characters kept of what a request's path gives as a job's id."""

_JOB_ID = re.compile(r"\bjob_[0-9a-f]{24}\b")
_SECRETS = (
    (re.compile(r"(://[^:/@\s]*):[^@/\s]+@"), r"\1:***@"),
    (re.compile(r"\b(bearer|basic)\s+[^\s\"',;]+", re.IGNORECASE), r"\1 ***"),
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def get(name: str) -> BoundLogger:
    """The logger of a module."""
    return structlog.stdlib.get_logger(name)


def _of_request(_logger: Any, _method: str, line: EventDict) -> EventDict:
    scope = request_scope.get()
    if scope is not None:
        line.setdefault("request_id", scope.get(REQUEST_ID))
        if job_id := scope.get("path_params", {}).get("job_id"):
            line.setdefault("job_id", str(job_id)[:LONGEST])
    return line


def _job_in_text(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """The job that a line names: so lines of libraries have its id too."""
    if "job_id" not in line and (found := _JOB_ID.search(f"{line.get('event')} {line.get('exception', '')}")):
        line["job_id"] = found[0]
    return line


def _without_secrets(_logger: Any, _method: str, line: EventDict) -> EventDict:
    for name, value in line.items():
        if isinstance(value, str):
            for pattern, replacement in _SECRETS:
                value = pattern.sub(replacement, value)
            line[name] = value
    return line


def _on_one_line(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """No text begins a line of its own, but for tracebacks, whose lines are indented."""
    for name, value in line.items():
        if name in ("exception", "stack"):
            line[name] = "\n".join("    " + _escaped(part) for part in str(value).split("\n"))
        elif isinstance(value, str):
            line[name] = _escaped(value)
    return line


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


_EVERY_LINE: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _of_request,
    structlog.processors.format_exc_info,
]

structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        *_EVERY_LINE,
        ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=LoggerFactory(),
    wrapper_class=BoundLogger,
)


def _formatter(process: str, as_json: bool) -> ProcessorFormatter:
    def name_process(_logger: Any, _method: str, line: EventDict) -> EventDict:
        return {"process": process, **line}

    renderer: list[Processor] = [structlog.processors.JSONRenderer(default=str)]
    if not as_json:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), repr_native_str=True)
        renderer = [_on_one_line, console]
    shared = [ProcessorFormatter.remove_processors_meta, name_process, _job_in_text, _without_secrets]
    return ProcessorFormatter(foreign_pre_chain=_EVERY_LINE, processors=[*shared, *renderer])


def configure(process: str, settings: Settings) -> None:
    """Send every line of this process to standard error. ``auto``: for people, and warnings alone, at a terminal."""
    at_terminal = sys.stderr.isatty()
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not at_terminal)
    level = settings.log_level if settings.log_level != "auto" else "warning" if at_terminal else "info"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(process, as_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("alembic").setLevel("WARNING")  # it tells of every look at the database's revision
    logging.captureWarnings(True)
    adopt()
    sys.excepthook = _log_unhandled
    threading.excepthook = lambda given: _log_unhandled(
        given.exc_type, given.exc_value or given.exc_type(), given.exc_traceback
    )


def adopt() -> None:
    """Take the handlers of libraries away (Ray brings its own), so that their lines take our way."""
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True


class _Lines(TextIOBase):
    """Stands for a standard stream where libraries print to it: what they print becomes lines of the log."""

    def __init__(self, real: TextIO) -> None:
        self._real = real
        self._rest = ""
        self._busy = threading.local()  # a fault of logging itself is printed, and must not be logged

    def write(self, text: str) -> int:
        """Log the lines that are complete."""
        if getattr(self._busy, "now", False):
            return self._real.write(text)
        self._busy.now = True
        try:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                if plain := _COLOUR.sub("", line).strip():
                    logging.getLogger("printed").warning("%s", plain)
        finally:
            self._busy.now = False
        return len(text)

    def fileno(self) -> int:
        """That of the real stream."""
        return self._real.fileno()

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""
        return self._real.isatty()


def catch_printed() -> None:
    """From now on, what is printed is logged."""
    sys.stdout, sys.stderr = (cast(TextIO, _Lines(stream)) for stream in (sys.stdout, sys.stderr))


def _log_unhandled(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    logging.getLogger(__name__).critical("the process ends by an exception", exc_info=(kind, error, traceback))
