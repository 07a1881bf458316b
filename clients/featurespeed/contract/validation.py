"""From untrusted input to a JobRequest, or to errors that name field, value and bound."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from featurespeed.contract.job import FieldError
from featurespeed.contract.request import JobRequest
from featurespeed.contract.strict_json import JsonFault, check_json

_TAGGED_UNIONS = {"architecture", "data", "optimizer"}
_UNION_MEMBERS = {
    "DepthPower",
    "TargetAngle",
    "tagged-union[DepthPower,TargetAngle]",
    "float",
    "constrained-float",
    "literal['balanced']",
    "dict[constrained-str,constrained-float]",
}
_MAP_KEY = "[key]"  # in a path, after a key that is not allowed
_SHOULD_BE = re.compile(r"^Input should be (?=a valid |an object|'balanced')")
_OWN_FIELD = re.compile(r"^([a-z_]+(?:\.[a-z_0-9]+)*): ")


MOST_ERRORS = 20
"""Faults told of one specification; nobody reads more."""
MOST_CONSIDERED = 200
"""Of pydantic's errors, several of which may be one fault."""
LONGEST_VALUE = 500
LONGEST_BOUND = 300
LONGEST_KEY = 64
"""Of a path's parts, which a specification may invent."""


class SpecError(ValueError):
    """A specification was refused; ``errors`` lists field, value and bound of each fault, but for ``more`` others."""

    def __init__(self, errors: list[FieldError], more: int = 0) -> None:
        self.errors = errors
        told = [f"{e.field}: {e.bound} (got {shown(e.value)})" for e in errors]
        super().__init__("; ".join([*told, f"and {more:,} more"] if more else told))


def shown(value: Any) -> str:
    """A value as one short line of JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


def parse_request(spec: Any) -> JobRequest:
    """Validate a decoded JSON or YAML document as a JobRequest; raises SpecError.

    Goes through JSON, so that a list in YAML and an array in JSON are the same thing under strict types.
    """
    return parse_request_json(json.dumps(spec, default=str))


def parse_request_json(text: str | bytes) -> JobRequest:
    """Validate JSON text as a JobRequest; raises SpecError."""
    try:
        check_json(text)
        return JobRequest.model_validate_json(text)
    except JsonFault as fault:
        raise SpecError([FieldError(field=fault.field, value=_short(fault.value), bound=str(fault))]) from None
    except ValidationError as error:
        raise SpecError(*field_errors(error)) from None


def field_errors(error: ValidationError) -> tuple[list[FieldError], int]:
    """Pydantic's errors as the contract's, and how many more there are.

    Union tags are left out of the path, and a fault is named once.
    """
    found: dict[tuple[str, ...], list[FieldError]] = {}
    for item in error.errors(include_url=False)[:MOST_CONSIDERED]:
        path, fault = _field_error(item)
        # of a union, what is said of the member that was meant comes first: the number that is out of bounds
        is_bound = item["type"].startswith(("greater_than", "less_than"))
        faults = found.setdefault(path, [])
        faults.insert(0 if is_bound else len(faults), fault)
    # likewise, a fault within an object beats its being no number
    outer = {path[:i] for path in found for i in range(1, len(path))}
    meant = [_alternatives(faults) for path, faults in found.items() if path not in outer]
    more = max(0, len(meant) - MOST_ERRORS) + max(0, error.error_count() - MOST_CONSIDERED)
    return [_bounded(fault) for fault in meant[:MOST_ERRORS]], more


def _bounded(fault: FieldError) -> FieldError:
    bound = fault.bound if len(fault.bound) <= LONGEST_BOUND else fault.bound[: LONGEST_BOUND - 1] + "…"
    return fault.model_copy(update={"value": _short(fault.value), "bound": bound})


def _short(value: Any) -> Any:
    """The value, or the beginning of its JSON if that is long."""
    return value if len(json.dumps(value, default=str)) <= LONGEST_VALUE else shown(value)


def _alternatives(faults: list[FieldError]) -> FieldError:
    """One fault for all: of a union whose members were all of another type, every member."""
    first = faults[0]
    if not all(_SHOULD_BE.match(fault.bound) for fault in faults):
        return first
    wanted = dict.fromkeys(_SHOULD_BE.sub("", fault.bound) for fault in faults)
    return first.model_copy(update={"bound": f"Input should be {' or '.join(wanted)}"})


def _field_error(item: ErrorDetails) -> tuple[tuple[str, ...], FieldError]:
    """The path, part by part, and the fault."""
    loc, value = item["loc"], item.get("input")
    message = item["msg"].removeprefix("Value error, ")
    unsaid = {*_UNION_MEMBERS, _MAP_KEY}
    parts = [str(p) for i, p in enumerate(loc) if not _is_tag(loc, i) and p not in unsaid]
    if item["type"] == "missing":
        value = None
    if item["type"].startswith("union_tag"):
        tag = item["ctx"]["discriminator"].strip("'")
        parts.append(tag)
        value = _inner(value, tag)
        message = (
            f"Input should be one of {item['ctx']['expected_tags']}"
            if "expected_tags" in item["ctx"]
            else "Field required"
        )
    own = _OWN_FIELD.match(message)  # our validators begin with the field that they blame
    if own:
        if parts[-1:] != [own[1]]:
            parts += own[1].split(".")
        message = message[own.end() :]
        value = _inner(value, own[1])
    field = ".".join(_key(part) for part in parts) or "body"
    return tuple(parts), FieldError(field=field, value=value, bound=message)


def _is_tag(loc: tuple[int | str, ...], i: int) -> bool:
    """Whether part i of a path says which member of a union is meant, as in ``architecture.graph.layers.0.conv``."""
    if loc[:2] == ("architecture", "huggingface"):
        return i in (1, 2)
    return (i == 1 and loc[0] in _TAGGED_UNIONS) or (i == 4 and loc[:3] == ("architecture", "graph", "layers"))


def _key(part: str) -> str:
    return part if len(part) <= LONGEST_KEY else part[: LONGEST_KEY - 1] + "…"


def _inner(value: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return None
    return value
