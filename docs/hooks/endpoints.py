"""The page of endpoints, made of the OpenAPI document of the service that is there."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from featurespeed_service.api.app import create_app
from featurespeed_service.settings import Settings
from featurespeed_service.store.sql import open_store

MARK = "<!-- endpoints -->"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the list in the place of its mark."""
    return markdown.replace(MARK, _endpoints()) if MARK in markdown else markdown


def _endpoints() -> str:
    with TemporaryDirectory() as folder:
        store = open_store(Settings(data_dir=Path(folder)))
        try:
            document = create_app(Settings(data_dir=Path(folder)), store).openapi()
        finally:
            store.close()
    told = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            told.append(_told(f"{method.upper()} {path}", operation))
    return "\n".join(told)


def _told(name: str, operation: dict[str, Any]) -> str:
    lines = [f"## `{name}`", "", operation.get("description", operation["summary"]), ""]
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | |", "|---|---|---|"]
        lines += [f"| `{p['name']}` | {p['in']} | {_type(p)} |" for p in parameters]
        lines.append("")
    answers = operation["responses"].items()
    lines += ["| status | |", "|---|---|"]
    lines += [f"| {status} | {_line(answer['description'])} |" for status, answer in sorted(answers)]
    return "\n".join([*lines, ""])


def _type(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    kinds = [str(s.get("type", s.get("$ref", "").rpartition("/")[2])) for s in schema.get("anyOf", [schema])]
    described = _line(parameter.get("description", ""))
    needed = "needed" if parameter.get("required") else "optional"
    return ", ".join(filter(None, (" or ".join(k for k in kinds if k != "null"), needed, described)))


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
