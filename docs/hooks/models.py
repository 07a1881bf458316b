"""The page of specifications and reports, made of the JSON Schemas of the contract's models."""

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from featurespeed.contract import Job, JobRequest, Problem, Report

MARK = re.compile(r"<!-- model: (\w+) -->")
MODELS = {model.__name__: model for model in (JobRequest, Report, Job, Problem)}
ROLE = re.compile(r":\w+:`~?([^`]+)`")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minItems": "at least {} items", "maxItems": "at most {} items", "pattern": "`{}`"}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put a model, and those that it is made of, in the place of its mark; each is told once a page."""
    told: set[str] = set()
    return MARK.sub(lambda found: _models(found[1], told), markdown)


def _models(name: str, told: set[str]) -> str:
    mode = "validation" if name == "JobRequest" else "serialization"
    schema = MODELS[name].model_json_schema(mode=mode)
    parts = {name: schema, **schema.get("$defs", {})}
    new = {key: part for key, part in parts.items() if key not in told and "properties" in part}
    told.update(new)
    return "\n\n".join(_model(key, part, parts) for key, part in new.items())


def _model(name: str, schema: dict[str, Any], known: dict[str, Any]) -> str:
    rows = [
        f"| `{field}` | {_type(part, known)} | {_default(part, field in schema.get('required', ()))} |"
        for field, part in schema["properties"].items()
    ]
    text = ROLE.sub(r"`\1`", schema.get("description", ""))
    return "\n".join([f"### {name}", "", text, "", "| field | type | default |", "|---|---|---|", *rows])


def _type(part: dict[str, Any], known: dict[str, Any]) -> str:
    """A type with its bounds, in words; models are links."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        target = known[name]
        return f"[{name}](#{name.lower()})" if "properties" in target else _type(target, known)
    if options := part.get("anyOf") or part.get("oneOf"):
        kinds = dict.fromkeys(_type(option, known) for option in options if option.get("type") != "null")
        return " or ".join(kinds)
    if "const" in part or "enum" in part:
        return " or ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    items = part.get("items") or next(iter(part.get("prefixItems", ())), None)
    kind = part.get("type", "any")
    if kind == "array" and items:
        kind = f"list of {_type(items, known)}"
    elif kind == "object" and isinstance(part.get("additionalProperties"), dict):
        kind = f"map to {_type(part['additionalProperties'], known)}"
    bounds = [f"{sign} {part[name]:,}" for name, sign in BOUNDS.items() if name in part]
    lengths = [words.format(part[name]) for name, words in LENGTHS.items() if name in part]
    return " ".join([kind, ", ".join([*bounds, *lengths])]).strip().replace("|", "\\|")


def _default(part: dict[str, Any], required: bool) -> str:
    if required:
        return "needed"
    default = part.get("default")
    if isinstance(default, dict):
        return f"`{default['name']}`" if "name" in default else "its defaults"
    return "–" if default is None else f"`{default}`"
