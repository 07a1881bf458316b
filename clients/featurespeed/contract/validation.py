"""From untrusted input to a JobRequest, or to errors that name field, value and bound."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from featurespeed.contract.job import FieldError
from featurespeed.contract.request import JobRequest

_TAGGED_UNIONS = {"architecture", "data", "optimizer"}
_UNION_MEMBERS = {
    "DepthPower",
    "TargetAngle",
    "tagged-union[DepthPower,TargetAngle]",
    "float",
    "constrained-float",
    "literal['balanced']",
    "dict[str,constrained-float]",
}
_MAP_KEY = "[key]"  # in a path, after a key that is not allowed
_SHOULD_BE = re.compile(r"^Input should be (?=a valid |an object|'balanced')")
_OWN_FIELD = re.compile(r"^([a-z_]+(?:\.[a-z_]+)*): ")


MOST_ERRORS = 20
"""Faults told of one specification; nobody reads more."""
LONGEST_VALUE = 500


class SpecError(ValueError):
    """A specification was refused; ``errors`` lists field, value and bound of each fault."""

    def __init__(self, errors: list[FieldError]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{e.field}: {e.bound} (got {shown(e.value)})" for e in errors))


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
        return JobRequest.model_validate_json(text)
    except ValidationError as error:
        raise SpecError(field_errors(error)) from None


def field_errors(error: ValidationError) -> list[FieldError]:
    """Pydantic's errors as the contract's: union tags left out of the path, a fault named once."""
    found: dict[str, list[FieldError]] = {}
    for item in error.errors(include_url=False):
        fault = _field_error(item)
        # of a union, what is said of the member that was meant comes first: the number that is out of bounds
        is_bound = item["type"].startswith(("greater_than", "less_than"))
        faults = found.setdefault(fault.field, [])
        faults.insert(0 if is_bound else len(faults), fault)
    # likewise, a fault within an object beats its being no number
    outer = {field[:i] for field in found for i, letter in enumerate(field) if letter == "."}
    meant = [_alternatives(faults) for field, faults in found.items() if field not in outer]
    return [fault.model_copy(update={"value": _short(fault.value)}) for fault in meant[:MOST_ERRORS]]


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


def _field_error(item: ErrorDetails) -> FieldError:
    loc, value = item["loc"], item.get("input")
    message = item["msg"].removeprefix("Value error, ")
    unsaid = {*_UNION_MEMBERS, _MAP_KEY}
    parts = [str(p) for i, p in enumerate(loc) if not (i == 1 and loc[0] in _TAGGED_UNIONS) and p not in unsaid]
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
            parts.append(own[1])
        message = message[own.end() :]
        value = _inner(value, own[1])
    return FieldError(field=".".join(parts) or "body", value=value, bound=message)


def _inner(value: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
