"""One question, asked of a server or answered in this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from featurespeed.cli.server import open_client
from featurespeed.contract.job import FieldError
from featurespeed.contract.report import Report
from featurespeed.contract.request import Kind
from featurespeed.contract.validation import SpecError
from featurespeed.progress import LineListener, progress_on_terminal
from featurespeed.spec_files import Specification, complete, parse_spec


@dataclass(frozen=True)
class Question:
    """What the options say: where the specification is, whom to ask, and what to put in place of its own settings."""

    spec: str
    server: str | None = None
    seeds: str | None = None
    steps: int | None = None
    refine: int | None = None
    api_key_file: Path | None = None


def answer(kind: Kind, question: Question) -> Report:
    """The report; raises what :mod:`featurespeed.cli.outcome` explains."""
    if question.api_key_file is not None and question.server is None:
        raise typer.BadParameter("is for a server, and none is named", param_hint="--api-key-file")
    specification = read(kind, question)
    with progress_on_terminal(None) as shown:
        listener = shown or LineListener()
        if question.server is None:
            from featurespeed.cli.local import answer_here

            return answer_here(specification, listener)
        with open_client(question.server, question.api_key_file) as client:
            method = client.recommend if kind == "recommend" else client.measure
            return method(specification, on_event=listener)


def read(kind: Kind, question: Question) -> Specification:
    """The specification, with the options' settings in it."""
    if question.spec == "-":
        document, folder = parse_spec(sys.stdin.buffer.read(), "standard input"), Path()
    else:
        path = Path(question.spec)
        document, folder = parse_spec(path.read_bytes(), str(path)), path.parent
    _override(document, "measurement", _measurement(question))
    if question.refine is not None:
        scaling = document.get("scaling", {})
        refine = scaling.get("refine") if isinstance(scaling, dict) else None
        given = refine if isinstance(refine, dict) else {}  # its factors are kept
        _override(document, "scaling", {"refine": {**given, "steps": question.refine}})
    return complete(document, kind, folder)


def _override(document: dict[str, Any], section: str, values: dict[str, Any]) -> None:
    settings = document.get(section, {})
    if isinstance(settings, dict):  # otherwise it is refused later
        document[section] = {**settings, **values}


def _measurement(question: Question) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if question.steps is not None:
        found["steps"] = question.steps
    if question.seeds is not None:
        try:
            found["seeds"] = [int(seed) for seed in question.seeds.split(",")]
        except ValueError:
            fault = FieldError(
                field="--seeds", value=question.seeds, bound="should be integers with commas, as in 0,1,2"
            )
            raise SpecError([fault]) from None
    return found
