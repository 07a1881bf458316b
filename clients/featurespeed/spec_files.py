"""Specifications as users have them: a dict, a JobRequest, or a file in YAML or JSON that may name a local dataset."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurespeed.contract.job import FieldError
from featurespeed.contract.request import JobRequest, Kind
from featurespeed.contract.strict_json import DuplicateKey, unique_keys
from featurespeed.contract.validation import SpecError


@dataclass(frozen=True)
class Specification:
    """A specification as it is sent, and the local files behind ``data.sha256`` and ``checkpoint.sha256``, if named."""

    document: dict[str, Any]
    dataset: Path | None = None
    checkpoint: Path | None = None


Spec = Mapping[str, Any] | JobRequest | str | os.PathLike[str] | Specification
"""What the client takes for a specification; a string is a path."""


def load_spec(spec: Spec, kind: Kind | None = None) -> Specification:
    """The specification with its kind and files filled in; raises SpecError, and OSError if it cannot be read.

    ``kind`` is what is asked for: a missing ``kind`` becomes it, another one is an error. The ``path`` of a dataset or
    checkpoint is taken relative to the file of the specification (else the working directory) and replaced by the
    file's ``sha256``.
    """
    if isinstance(spec, Specification):
        return replace(spec, document=complete(spec.document, kind, Path()).document)
    if isinstance(spec, JobRequest):
        return complete(spec.model_dump(mode="json"), kind, Path())
    if isinstance(spec, Mapping):
        return complete(dict(spec), kind, Path())
    path = Path(spec)
    return complete(parse_spec(path.read_bytes(), name=str(path)), kind, path.parent)


def complete(document: dict[str, Any], kind: Kind | None, folder: Path) -> Specification:
    """See :func:`load_spec`; ``document`` is left as it is."""
    document = copy.deepcopy(document)
    if kind is not None and document.setdefault("kind", kind) != kind:
        raise _error("kind", document["kind"], f"Input should be '{kind}', which is what was called for")
    data = document.get("data")
    dataset = _file(data, "data", folder) if isinstance(data, dict) and data.get("kind") == "dataset" else None
    return Specification(document, dataset, _file(document.get("checkpoint"), "checkpoint", folder))


def _file(section: Any, name: str, folder: Path) -> Path | None:
    """The local file that a section names; ``sha256`` then takes the place of ``path`` in it."""
    if not isinstance(section, dict) or "path" not in section:
        return None
    if "sha256" in section:
        raise _error(f"{name}.path", section["path"], "path and sha256 exclude each other")
    if not isinstance(section["path"], str):
        raise _error(f"{name}.path", section["path"], "Input should be the path of a safetensors file")
    path: Path = folder / section.pop("path")
    try:
        section["sha256"] = file_sha256(path)
    except OSError as error:
        raise _error(f"{name}.path", str(path), error.strerror or "cannot be read") from error
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_spec(content: bytes, name: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON document; ``name`` is its file's, for the errors and to tell the format.

    Raises SpecError that says where the document is not well formed, or that names a key given twice.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(name, f"byte {error.start}", "the specification should be UTF-8 text") from error
    try:
        document = _parse_json(text) if _is_json(text, name) else _parse_yaml(text)
    except _SyntaxFault as fault:
        raise _error(name, fault.near, str(fault)) from None
    if not isinstance(document, dict):
        raise _error(name, document, "the specification should be a mapping of fields to values")
    return document


class _SyntaxFault(Exception):
    def __init__(self, message: str, near: str | None = None) -> None:
        super().__init__(message)
        self.near = near


def _is_json(text: str, name: str) -> bool:
    return name.endswith(".json") or (not name.endswith((".yaml", ".yml")) and text.lstrip()[:1] == "{")


def _parse_json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise _SyntaxFault("not a number of JSON", constant)

    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise _SyntaxFault(
            f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}", _line(text, error.lineno)
        ) from None
    except DuplicateKey as error:
        raise _SyntaxFault(str(error), error.key) from None
    except ValueError as error:  # a number of thousands of digits
        raise _SyntaxFault(f"not JSON: {error}") from None
    except RecursionError:
        raise _SyntaxFault("nested too deeply") from None


def _parse_yaml(text: str) -> Any:
    try:
        import yaml

        from featurespeed.yaml_loader import StrictLoader
    except ModuleNotFoundError:
        return _parse_json(text)
    try:
        return yaml.load(text, StrictLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        near = _line(text, mark.line + 1) if mark else None
        raise _SyntaxFault(f"not YAML{where}: {error.problem or error.context}", near) from None
    except yaml.YAMLError as error:
        raise _SyntaxFault(f"not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a number of thousands of digits
        raise _SyntaxFault(f"not YAML: {error}") from None
    except RecursionError:
        raise _SyntaxFault("nested too deeply") from None


def _line(text: str, number: int) -> str | None:
    lines = text.splitlines()
    return lines[number - 1].strip() if number <= len(lines) else None


def _error(field: str, value: Any, bound: str) -> SpecError:
    return SpecError([FieldError(field=field, value=value, bound=bound)])
