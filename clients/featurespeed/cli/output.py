"""Where a report goes: standard output, and a file."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from featurespeed.contract.report import Report


def check_out(path: Path | None) -> None:
    """Raise OSError if the report could not be written there, before the work is done rather than after."""
    if path is None:
        return
    folder = path.resolve().parent
    for fault, number in (
        (path.is_dir(), errno.EISDIR),
        (not folder.is_dir(), errno.ENOENT),
        (folder.is_dir() and not os.access(folder, os.W_OK), errno.EACCES),
    ):
        if fault:
            raise OSError(number, os.strerror(number), str(path))


def deliver(report: Report, *, as_json: bool, out: Path | None) -> None:
    """Print the report, and write it to ``out``; that the one fails does not keep the other from happening."""
    json = report.model_dump_json(indent=2) + "\n"
    try:
        if as_json:
            print_text(json)
        else:
            from featurespeed.cli.tables import rendered

            print_text(rendered(report))
    finally:
        if out is not None:
            write_whole(out, json)


def print_text(text: str) -> None:
    """Write to standard output; that its reader has gone, as ``head`` does, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # what is still buffered must not fail again when the interpreter flushes at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part; text as UTF-8."""
    raw = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # a pipe or device is written to, not replaced
        path.write_bytes(raw)
        return
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
