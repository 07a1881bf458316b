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
    """Print the report, and write it to ``out``; the one does not keep the other from happening."""
    text = report.model_dump_json(indent=2) + "\n"
    try:
        if as_json:
            sys.stdout.write(text)
        else:
            from featurespeed.cli.tables import print_report

            print_report(report)
        sys.stdout.flush()
    finally:
        if out is not None:
            write_whole(out, text)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    if path.exists() and not path.is_file():  # a pipe or device is written to, not replaced
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
