"""The dispatcher as a process: signals, the parent's end, the signs of life that the supervisor reads."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

from featurespeed_service.settings import Settings
from featurespeed_service.store.database import revision_of
from featurespeed_service.store.errors import StoreUnavailable

log = logging.getLogger(__name__)

STOP_SECONDS = 6.0
"""A dispatcher whose parent has gone ends itself within this, however stuck it is."""
SIGN_SECONDS = 1.0
"""How often a sign of life is given."""
REOPEN_SECONDS = 1.0


class SignsOfLife:
    """Writes to a pipe now and then; without one, does nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._last = float("-inf")
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # it is this process that must be alive, not those it starts
            os.set_blocking(descriptor, False)

    def give(self) -> None:
        """Show that the loop goes round."""
        if self._descriptor is None or (now := time.monotonic()) - self._last < SIGN_SECONDS:
            return
        self._last = now
        with suppress(OSError):  # the pipe is full, or nobody reads it
            os.write(self._descriptor, b".")


MUTE = SignsOfLife(None)


def stop_on_signals(stop: threading.Event) -> None:
    """Set ``stop`` on SIGTERM and SIGINT."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def stop_with_parent(stop: threading.Event) -> None:
    """Wait for the end of standard input, a pipe that closes with the parent."""
    while os.read(sys.stdin.fileno(), 1024):  # not through sys.stdin: its lock would be held at the process's end
        pass
    stop.set()
    time.sleep(STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)  # stuck; Ray's processes are set to die with this one


def wait_for_store(settings: Settings, stop: threading.Event) -> None:
    """Wait until the database can be reached, or until told to stop; other errors are as of Database.

    Gives no sign of life: the first one says that Ray has started.
    """
    while not stop.is_set():
        try:
            revision_of(settings.database_url)
            return
        except StoreUnavailable as error:
            log.warning("the database cannot be reached, trying again: %s", error)
            stop.wait(REOPEN_SECONDS)
