"""Where records go: a JSONL file, a TensorBoard writer, or any callable."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from featurespeed_workers.monitoring.records import Record

Sink = Callable[[Record], None]


class ScalarWriter(Protocol):
    """What is used of a ``torch.utils.tensorboard.SummaryWriter``; where it has ``add_text``, failures go there."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""


Target = str | os.PathLike[str] | ScalarWriter | Sink


def sinks_of(to: Target | Sequence[Target]) -> list[Sink]:
    """What takes the records; files are opened. Raises ValueError for a target of another kind, OSError for a file."""
    targets = to if isinstance(to, Sequence) and not isinstance(to, str) else [to]
    sinks: list[Sink] = []
    try:
        for target in targets:
            sinks.append(_sink(target))
    except BaseException:
        close(sinks)
        raise
    return sinks


def close(sinks: Sequence[Sink]) -> None:
    """Close the files among them; writers and callables are their owner's."""
    for sink in sinks:
        if isinstance(sink, JsonLines):
            sink.close()


def _sink(target: Any) -> Sink:
    if isinstance(target, str | os.PathLike):
        return JsonLines(Path(target))
    if callable(getattr(target, "add_scalar", None)):
        return Scalars(target)
    if callable(target):
        return target  # type: ignore[no-any-return]
    raise ValueError(f"to: {target!r} is neither a path, nor a callable, nor has it add_scalar")


class JsonLines:
    """Appends a line of JSON for each record: a whole one or none, for whoever reads the file meanwhile.

    Where an earlier process was killed within its last line, that line is cut off. Raises ValueError if the file ends
    with a piece of a line that is no record's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab+", buffering=0)
        try:
            _finish_last_line(path, self._file.fileno())
        except BaseException:
            self._file.close()
            raise

    def __call__(self, record: Record) -> None:
        """Write the record; the file is as it was if that fails."""
        line, file = f"{record.json_line()}\n".encode(), self._file.fileno()
        before, written = os.fstat(file).st_size, 0
        try:
            while written < len(line):
                written += os.write(file, line[written:])
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
            raise

    def __repr__(self) -> str:
        return str(self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finish_last_line(path: Path, file: int) -> None:
    end = os.fstat(file).st_size
    tail = _tail(file, end)
    if not tail:
        return
    try:
        json.loads(tail)
    except ValueError:
        if not tail.startswith(b'{"step":'):
            raise ValueError(f"to: {path} ends within a line that is no record, {tail[:40]!r}") from None
        os.ftruncate(file, end - len(tail))
    else:
        os.write(file, b"\n")


def _tail(file: int, end: int, piece: int = 1 << 16) -> bytes:
    """What follows the last end of a line."""
    tail = b""
    while end > 0 and b"\n" not in tail:
        begin = max(0, end - piece)
        tail, end = os.pread(file, end - begin, begin) + tail, begin
    return tail.rpartition(b"\n")[2]


class Scalars:
    """Gives each number of a record to ``add_scalar``, under ``featurespeed/``. The writer stays its owner's."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, record: Record) -> None:
        """Write all numbers; of a step that could not be measured, the reason as text."""
        for name, value in record.scalars().items():
            self._writer.add_scalar(f"featurespeed/{name}", value, record.step)
        if record.error is not None and hasattr(self._writer, "add_text"):
            self._writer.add_text("featurespeed/error", record.error.detail, record.step)
