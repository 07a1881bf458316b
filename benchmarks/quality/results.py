"""Results as files, one a cell and contender: an interrupted benchmark goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.quality.suite import Cell

FOLDER = Path(__file__).parent / "results"


def path_of(cell: Cell, contender: str) -> Path:
    """The file of one result."""
    return FOLDER / cell.name / f"{contender}.json"


def question(cell: Cell) -> str:
    """Digest of everything that a result depends on beside the contender: specification and number of steps."""
    return hashlib.sha256(json.dumps([cell.spec, cell.steps], sort_keys=True).encode()).hexdigest()[:16]


def load(cell: Cell, contender: str) -> dict[str, Any] | None:
    """A stored result, if it is an answer to the same question."""
    path = path_of(cell, contender)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found if found["question"] == question(cell) else None


def save(cell: Cell, contender: str, result: dict[str, Any]) -> None:
    """Store a result; a file is there as a whole or not at all."""
    path = path_of(cell, contender)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"question": question(cell), **result}, indent=1) + "\n")
    temporary.replace(path)
