"""The service under load: ``featurespeed serve`` and ``featurespeed dispatcher`` as an operator starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.service import postgres

FEATURESPEED = [sys.executable, "-m", "featurespeed"]


@dataclass(frozen=True)
class Place:
    """A database without jobs, and a directory."""

    directory: Path
    database: str
    server: psutil.Process | None
    """The database's process, if it has one of its own."""

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the service needs to be told."""
        return {
            **os.environ,
            "FEATURESPEED_DATA_DIR": str(self.directory / "data"),
            "FEATURESPEED_DATABASE": self.database,
            "FEATURESPEED_LOG_LEVEL": "info",  # what "auto" is for a service
        }


@contextmanager
def place(kind: str) -> Iterator[Place]:
    """An empty ``sqlite`` or ``postgresql``, the second a server of its own with its defaults."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featurespeed-load-")))
        if kind == "sqlite":
            (directory / "data").mkdir()
            yield Place(directory, f"sqlite:///{directory / 'data' / 'featurespeed.sqlite3'}", None)
            return
        server = stack.enter_context(postgres.running(durable=True))
        assert server.process is not None
        yield Place(directory, server.new_database(), psutil.Process(server.process.pid))


@contextmanager
def serving(place: Place, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """``featurespeed serve``: its address and its process."""
    with (place.directory / "log").open("a") as log:
        command = [*FEATURESPEED, "serve", "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=place.environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the service did not start: {(place.directory / 'log').read_text()[-2000:]}")
        yield line.split()[-1], psutil.Process(process.pid)
    finally:
        _stop(process)


@contextmanager
def dispatching(place: Place) -> Iterator[psutil.Process]:
    """``featurespeed dispatcher`` with a Ray of its own."""
    with (place.directory / "log").open("a") as log:
        process = subprocess.Popen([*FEATURESPEED, "dispatcher"], stdout=log, stderr=log, env=place.environment)
    try:
        yield psutil.Process(process.pid)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    if process.stdout is not None:
        process.stdout.close()


def cpu_seconds(process: psutil.Process | None) -> float:
    """Of a process and its children that live; 0 of none."""
    if process is None:
        return 0.0
    found = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found += times.user + times.system
    return found
