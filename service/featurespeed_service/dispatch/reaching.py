"""Whether somebody listens at the address of a Ray cluster."""

from __future__ import annotations

import re
import socket
import time

WAIT_SECONDS = 60.0
"""How long a cluster may take to start, when it is started together with its dispatcher."""
ADDRESS = re.compile(r"(?P<host>[^\s:/]+):(?P<port>\d{1,5})")


class NoCluster(Exception):
    """There is no Ray cluster for this process at the given address; the message is one line."""


def wait_for(address: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait until something listens at ``HOST:PORT``; ``auto`` is left to Ray. Raises NoCluster."""
    if address == "auto":
        return
    if not (found := ADDRESS.fullmatch(address)) or int(found["port"]) > 65535:
        raise NoCluster(f"the address of a Ray cluster is HOST:PORT or auto (got {address!r})")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((found["host"], int(found["port"])), timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise NoCluster(f"no Ray at {address}: {error.strerror or error}") from None
            time.sleep(0.2)
