"""``featurespeed serve``: the API in this process, a dispatcher in a child unless it runs elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from featurespeed_service import logs, telemetry
from featurespeed_service.api.app import create_app
from featurespeed_service.api.context import Context
from featurespeed_service.api.protocol import BoundedProtocol
from featurespeed_service.dispatch.supervisor import Supervisor
from featurespeed_service.exposure import guarded
from featurespeed_service.opening import CannotStart, opened, refuse, settings_of

GRACE_SECONDS = 2
"""How long requests may go on after the service was told to stop."""
LAST_SECONDS = 9.0
"""The process ends within this, though a thread of it may wait longer for the database; what it waits to write, nobody
was told that it is written."""


def serve(
    host: str,
    port: int,
    database: str | None = None,
    ray_address: str | None = None,
    data_dir: Path | None = None,
    *,
    dispatcher: bool = True,
) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status: 0, or 2 with one line on stderr if it cannot start.

    Port 0 takes a free one. Prints one line with the address to stdout once requests are answered. ``None`` leaves a
    choice to the environment (``FEATURESPEED_*``). Without ``dispatcher`` jobs wait for one that runs elsewhere.
    """
    try:
        settings = settings_of(database, ray_address, data_dir)
        logs.configure("api", settings)
        traces = telemetry.start("api", settings)
        store = opened(settings)
    except CannotStart as error:
        return refuse(error)
    with closing(store), closing(traces):
        try:
            listening = _listen(host, port)
        except (OSError, OverflowError) as error:
            return refuse(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}")
        with listening:
            try:
                settings = guarded(settings, listening.getsockname()[0], store.keys)
            except CannotStart as error:
                return refuse(error)
            supervisor = Supervisor(settings) if dispatcher else None
            app = create_app(settings, store)
            traces.follow_requests(app, store)
            _run(app, listening, host, supervisor)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _run(app: Any, listening: socket.socket, host: str, supervisor: Supervisor | None) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config, address, supervisor, app.state.context)
    if supervisor is not None:
        supervisor.start()
    with _signals_heeded_once():
        try:
            server.run(sockets=[listening])
        finally:
            if supervisor is not None:
                supervisor.stop()


class _Server(uvicorn.Server):
    """Tells when it listens, and tells the others when it is about to stop."""

    def __init__(self, config: uvicorn.Config, address: str, supervisor: Supervisor | None, context: Context) -> None:
        super().__init__(config)
        self._address = address
        self._supervisor = supervisor
        self._context = context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"featurespeed is listening on {self._address}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # a second Ctrl-C makes it no faster: the stop is under way, and bounded
            return
        if self._supervisor is not None:
            self._supervisor.begin_stop()
        self._context.stopping.set()
        last = threading.Timer(LAST_SECONDS, os._exit, [0])
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)


@contextmanager
def _signals_heeded_once() -> Iterator[None]:
    """From its end on, signals are ignored until the process is gone: it is stopping, and no Ctrl-C breaks that off.

    Before, they are the server's, which raises them once more at its end, to no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM)
    for name in names:
        signal.signal(name, lambda *_: None)  # not SIG_IGN yet: the dispatcher would inherit it
    try:
        yield
    finally:
        for name in names:
            signal.signal(name, signal.SIG_IGN)
