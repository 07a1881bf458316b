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
        "style-src 'self' 'unsafe-inline'",  # plotly writes style elements and attributes
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The content security policy of the page: nothing of others, and no script or style within the page."""


@cache
def table() -> Mapping[str, Traversable]:
    """Every file there is: nothing else is ever read."""
    own = files("featurespeed_service.web").joinpath("static")
    figures = files("featurespeed.figures").joinpath("assets")
    found = {file.name: file for file in own.iterdir() if file.name.rpartition(".")[2] in TYPES}
    found |= {name: figures.joinpath(name) for name in ("figures.js", "figures.css")}
    found["plotly.js"] = files("plotly").joinpath("package_data", "plotly.min.js")
    return found


@cache
def content(name: str) -> tuple[bytes, str]:
    """Content and ETag of a file of the table."""
    raw = table()[name].read_bytes()
    return raw, f'"{sha256(raw).hexdigest()[:32]}"'
