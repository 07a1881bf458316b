"""Keeps a dispatcher process alive beside the API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from featurespeed_service import logs
from featurespeed_service.settings import Settings

log = logs.get(__name__)

ALONE = (sys.executable, "-m", "featurespeed_service.dispatch")
COMMAND = (*ALONE, "--exit-with-parent")
FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A dispatcher that has lived so long was fine: the next one starts without delay again."""
STOP_SECONDS = 6.0
"""How long a dispatcher may take to stop before its process group is killed."""


SILENT_SECONDS = 30.0
"""A dispatcher that gave no sign of life for so long is stuck (stopped, or in a call that hangs), and is killed."""
START_SECONDS = 180.0
"""The same before its first sign: starting Ray takes a while."""


class Supervisor:
    """Starts a dispatcher, and another one whenever it dies or is stuck, until it is stopped."""

    def __init__(self, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._environment = settings.environment_of_child()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the first dispatcher, in the background."""
        self._thread.start()

    def begin_stop(self) -> None:
        """Ask the dispatcher to stop, and start no other; returns at once. May be called from a signal handler."""
        self._stopping.set()
        if (process := self._process) is not None:
            process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop the dispatcher; returns when it and all that it started are gone."""
        self.begin_stop()
        self._thread.join()

    def _supervise(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            status = self._run_once()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > STEADY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            log.error("the dispatcher ended; another is started", status=status, after_seconds=backoff)
            self._stopping.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)

    def _run_once(self) -> int:
        # A session of its own: Ctrl-C in a terminal reaches the API alone, which then stops the dispatcher in order.
        # Its standard output is our standard error, because ours has one line only.
        signs, given = os.pipe()
        process = subprocess.Popen(
            [*self._command, "--signs-of-life", str(given)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            env=self._environment,
            start_new_session=True,
            pass_fds=[given],
        )
        os.close(given)
        self._process = process
        try:
            if self._stopping.is_set():  # between the last look and now
                process.send_signal(signal.SIGTERM)
            return self._watch(process, signs)
        finally:
            self._process = None
            with suppress(ProcessLookupError):  # whatever of its group is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
            os.close(signs)

    def _watch(self, process: subprocess.Popen[bytes], signs: int) -> int:
        """Wait for the end of a dispatcher; returns its exit status."""
        os.set_blocking(signs, False)
        silent_at = time.monotonic() + START_SECONDS
        while (status := process.poll()) is None:
            if self._stopping.wait(0.05):
                return _wait_for_end(process)
            if _has_news(signs):
                silent_at = time.monotonic() + SILENT_SECONDS
            elif time.monotonic() > silent_at:
                log.error("the dispatcher gives no sign of life; it is killed")
                process.kill()
                return process.wait()
        return status


def _has_news(signs: int) -> bool:
    try:
        return bool(os.read(signs, 4096))
    except BlockingIOError:
        return False


def _wait_for_end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
