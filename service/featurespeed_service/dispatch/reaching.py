"""Whether a Ray cluster is there for this process, and what to tell if not."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from featurespeed_service.opening import CannotStart

log = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
"""How long a cluster may take to start, when it is started together with its dispatcher."""
ADDRESS = re.compile(r"(?P<host>[^\s:/]+):(?P<port>\d{1,5})")


def wait_for(address: str, stop: threading.Event, seconds: float = WAIT_SECONDS) -> None:
    """Wait until something listens at ``HOST:PORT``, or until told to stop; ``auto`` is left to Ray.

    Raises CannotStart.
    """
    if address == "auto":
        return
    if not (found := ADDRESS.fullmatch(address)) or int(found["port"]) > 65535:
        raise CannotStart(f"the address of a Ray cluster is HOST:PORT or auto (got {address!r})")
    end, is_told = time.monotonic() + seconds, False
    while not stop.is_set():
        try:
            socket.create_connection((found["host"], int(found["port"])), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise CannotStart(f"no Ray at {address}: {error.strerror or error}") from None
            if not is_told:
                log.info("waiting for the Ray at %s", address)
                is_told = True
            stop.wait(0.2)


@contextmanager
def standard_error_without(words: str) -> Iterator[list[str]]:
    """Takes lines with these words out of standard error, also those that a library writes past Python; gives them."""
    taken: list[str] = []
    shown = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)

    def pass_on() -> None:
        with open(reading, "rb") as lines:  # noqa: PTH123
            for line in lines:
                if words.encode() in line:
                    taken.append(line.decode(errors="replace"))
                else:
                    os.write(shown, line)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        os.dup2(shown, 2)  # the last to write has gone: the thread ends
        thread.join()
        os.close(shown)


def why_not(address: str, error: str, *, has_token: bool, is_refused: bool) -> CannotStart:
    """What to tell of a Ray that listens but cannot be joined."""
    if not has_token:
        return CannotStart(
            f"no token for the Ray at {address}: it is in RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH; "
            "with RAY_AUTH_MODE=disabled none is needed, if the Ray was started so"
        )
    if is_refused:
        return CannotStart(
            f"the Ray at {address} refuses our token (RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH)"
        )
    return CannotStart(f"no Ray at {address}: {error.splitlines()[0]}")
