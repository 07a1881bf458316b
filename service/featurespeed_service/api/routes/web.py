"""The web page and its files, open to all: what they show, they ask for with the reader's key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Response

from featurespeed_service.web.assets import POLICY, TYPES, content, table

router = APIRouter(include_in_schema=False)

HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


@router.get("/")
def page(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The web page."""
    return _file("index.html", if_none_match)


@router.get("/docs")
def docs(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The interactive reference."""
    return _file("docs.html", if_none_match)


@router.get("/static/{name}")
def static(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A file of the web page."""
    if name not in table():
        raise HTTPException(404)
    return _file(name, if_none_match)


def _file(name: str, if_none_match: str | None) -> Response:
    raw, tag = content(name)
    headers = {**HEADERS, "ETag": tag, "Cache-Control": "no-cache"}  # asked for again, answered by 304
    if if_none_match is not None and tag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(raw, headers=headers, media_type=TYPES[name.rpartition(".")[2]])
