"""``featurespeed serve``: the API in this process, a dispatcher in a child."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from featurespeed_service.api.app import create_app
from featurespeed_service.api.context import Context
from featurespeed_service.dispatch.supervisor import Supervisor
from featurespeed_service.settings import PREFIX, Settings
from featurespeed_service.store.migrating import DatabaseTooNew
from featurespeed_service.store.sql import open_store

BAD_INPUT = 2
GRACE_SECONDS = 2
"""How long requests may go on after the service was told to stop."""


def serve(
    host: str,
    port: int,
    database: str | None = None,
    ray_address: str | None = None,
    data_dir: Path | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status: 0, or 2 with one line on stderr if it cannot start.

    Port 0 takes a free one. Prints one line with the address to stdout once requests are answered. ``None`` leaves a
    choice to the environment (``FEATURESPEED_*``).
    """
    given = {"database": database, "ray_address": ray_address, "data_dir": data_dir}
    try:
        settings = Settings.from_environment()
        settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
        store = open_store(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        return _refuse(f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']} (got {fault['input']!r})")
    except (SQLAlchemyError, ImportError, OSError, DatabaseTooNew) as error:
        return _refuse(f"cannot open the database: {str(error).splitlines()[0]}")
    with closing(store):
        try:
            listening = _listen(host, port)
        except (OSError, OverflowError) as error:
            return _refuse(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}")
        with listening:
            _run(settings, create_app(settings, store), listening, host)
    return 0


def _refuse(message: str) -> int:
    print(f"featurespeed: {message}", file=sys.stderr)
    return BAD_INPUT


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _run(settings: Settings, app: Any, listening: socket.socket, host: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s api %(levelname)s %(message)s")
    supervisor = Supervisor(settings)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE_SECONDS
    )
    server = _Server(config, address, supervisor, app.state.context)
    supervisor.start()
    try:
        with _signals_kept():
            server.run(sockets=[listening])
    finally:
        supervisor.stop()


class _Server(uvicorn.Server):
    """Tells when it listens, and tells the others when it is about to stop."""

    def __init__(self, config: uvicorn.Config, address: str, supervisor: Supervisor, context: Context) -> None:
        super().__init__(config)
        self._address = address
        self._supervisor = supervisor
        self._context = context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"featurespeed is listening on {self._address}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._supervisor.begin_stop()
        self._context.stopping.set()
        super().handle_exit(sig, frame)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ignore the signals that uvicorn raises once more at its end: it has heeded them, and we have yet to clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.signal(name, lambda *_: None) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
