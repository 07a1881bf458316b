"""Reports on disk, made by this version or by another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from featurespeed.contract.job import FieldError
from featurespeed.contract.report import Report
from featurespeed.contract.validation import SpecError, shown
from featurespeed.version import __version__

MOST_FAULTS = 5


def read_report(path: Path) -> Report:
    """The report in a JSON file, or on standard input for ``-``; raises SpecError saying what it lacks, and OSError."""
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc']) or 'it'}: {fault['msg']}"
            for fault in error.errors(include_url=False)[:MOST_FAULTS]
        ]
        more = [f"and {error.error_count() - MOST_FAULTS} more"] if error.error_count() > MOST_FAULTS else []
        bound = f"must be a report of featurespeed {__version__}; {'; '.join([*faults, *more])}"
        raise SpecError([FieldError(field=str(path), value=_origin(text), bound=bound)]) from None


def _origin(text: str) -> str:
    """Which version of the program made it, as far as it says so; else how it begins."""
    try:
        return f"made by {json.loads(text)['provenance']['featurespeed']}"
    except (ValueError, TypeError, KeyError):
        return shown(text[:40])
