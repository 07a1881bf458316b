"""The files of the web page, by the name under which they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
}

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # plotly and Swagger UI write style elements and attributes
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The content security policy of both pages: nothing of others, and no script or style within the page."""


@cache
def table() -> Mapping[str, tuple[str, str]]:
    """Every file there is, as a package and a path in it: nothing else is ever read."""
    own, figures = "featurespeed_service.web", ("figures.js", "figures.css")
    swagger = ("swagger-ui.css", "swagger-ui-bundle.js")
    return {
        **{file.name: (own, f"static/{file.name}") for file in files(own).joinpath("static").iterdir() if _shown(file)},
        **{name: ("featurespeed.figures", f"assets/{name}") for name in figures},
        **{name: ("fastapi_offline", f"static/{name}") for name in swagger},
        "plotly.js": ("plotly", "package_data/plotly.min.js"),
    }


def _shown(file: Traversable) -> bool:
    return file.name.rpartition(".")[2] in TYPES


@cache
def content(name: str) -> tuple[bytes, str]:
    """Content and ETag of a file of the table."""
    package, path = table()[name]
    raw = files(package).joinpath(path).read_bytes()
    return raw, f'"{sha256(raw).hexdigest()[:32]}"'
