"""Datasets as files of this machine: fetched once, kept by their SHA-256, bounded together. Knows no Ray."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"


def default_directory() -> Path:
    """A directory of this user's own below the machine's temporary one."""
    return Path(tempfile.gettempdir()) / f"featurespeed-datasets-{os.getuid()}"


@contextmanager
def cached_dataset(
    directory: Path, sha256: str, size: int, fetch: Callable[[], Iterable[bytes]], limit_bytes: int
) -> Iterator[Path]:
    """The file with this content, fetched if it is not here; nobody removes it within the context.

    Files that are in use stay even beyond the limit. Raises ValueError if what is fetched has another SHA-256,
    PermissionError if the directory is another user's.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    path = directory / f"{sha256}.safetensors"
    while (held := _hold(path)) is None:
        with _locked(directory):
            if not path.exists():
                _make_room(directory, limit_bytes - size)
                _fill(path, sha256, fetch())
    try:
        yield path
    finally:
        os.close(held)


def _hold(path: Path) -> int | None:
    """A descriptor that keeps the file from being removed; ``None`` if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not path.exists():  # removed between the two
        os.close(descriptor)
        return None
    os.utime(path)  # the least recently used goes first
    return descriptor


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time fills or empties the directory."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fill(path: Path, sha256: str, pieces: Iterable[bytes]) -> None:
    partial = path.with_suffix(PARTIAL)
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != sha256:
        partial.unlink()
        raise ValueError(f"dataset {sha256} has the SHA-256 {digest.hexdigest()} where it is stored")
    partial.replace(path)


def _make_room(directory: Path, limit_bytes: int) -> None:
    """Remove what was used longest ago until the rest is within the limit, and what a killed process has left."""
    for left in directory.glob(f"*{PARTIAL}"):
        left.unlink()
    files = sorted(directory.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total <= limit_bytes:
            return
        size = path.stat().st_size
        if _remove_unused(path):
            total -= size


def _remove_unused(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    finally:
        os.close(descriptor)
    return False
