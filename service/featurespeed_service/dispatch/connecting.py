"""Becoming a driver of Ray: of the cluster at an address, or of one of our own that ends with us."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from featurespeed_service.dispatch.cluster import Cluster
from featurespeed_service.dispatch.reaching import standard_error_without, why_not
from featurespeed_service.settings import Settings

LOCAL_SYSTEM = {"gcs_rpc_server_reconnect_timeout_s": 5}
"""A local GCS that died does not come back: its driver ends after this, a new one starts. Ray's default is 60."""

DIRECTORY_PREFIX = "featurespeed-ray-"


def join(address: str) -> None:
    """Make this process a driver of the Ray at ``address``; raises CannotStart."""
    try:
        with standard_error_without("InvalidAuthToken") as refusals:  # which Ray prints twenty times
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        has_token = not isinstance(error, ray.exceptions.AuthenticationError)
        raise why_not(address, str(error), has_token=has_token, is_refused=bool(refusals)) from error


@contextmanager
def connect(settings: Settings) -> Iterator[Cluster]:
    """A cluster: the one at ``settings.ray_address``, else a local one that ends with the context."""
    if settings.ray_address is not None:
        join(settings.ray_address)
        try:
            yield Cluster(settings)
        finally:
            ray.shutdown()
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with _temporary_directory() as directory:
        try:
            ray.init(
                address="local",
                num_cpus=settings.cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=settings.object_store_bytes,
                _temp_dir=str(directory),
                _system_config=LOCAL_SYSTEM,
            )
            yield Cluster(settings)
        finally:
            ray.shutdown()


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A directory for Ray's logs and sockets, removed in the end; those of dispatchers that were killed go too.

    Not below the data directory: the path of a Unix socket has at most 107 characters.
    """
    for left in Path("/tmp").glob(f"{DIRECTORY_PREFIX}*"):
        with suppress(OSError), _locked(left):  # whoever lives holds the lock
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir="/tmp"))
    with _locked(directory):
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; raises OSError if another process does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
