"""The documentation site: it builds without a complaint, its links lead somewhere, and nothing comes from others."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest

import featurespeed
import featurespeed_workers
from featurespeed.contract import JobRequest, Report
from tests.client.live import live_service
from tests.test_docs import ROOT

LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""What a browser fetches without being asked."""


class Html(HTMLParser):
    """What a page fetches, what it links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.add(str(given["id"]))
        if tag in LOADED and (address := given.get(LOADED[tag])):
            self.loaded.append(address)
        if tag == "a" and (address := given.get("href")):
            self.links.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {file: Html(file.read_text()) for file in site.rglob("*.html")}


@pytest.fixture(scope="module")
def openapi_paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with live_service(tmp_path_factory.mktemp("service")) as service:
        document = httpx.get(f"{service.url}/openapi.json").json()
    return [f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations]


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    """Files and anchors, as a browser finds them: without mkdocs' own opinion of its links."""
    for page, html in pages.items():
        if page.name == "404.html":  # shown at any depth: its links begin at the root
            continue
        for address in [*html.links, *html.loaded]:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_relative_to(site), f"{page}: {address}"
            assert target.is_file(), f"{page}: {address}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids, f"{page}: {address}"


def test_nothing_comes_from_others(site: Path, pages: dict[Path, Html]) -> None:
    assert len(pages) > 20
    for page, html in pages.items():
        foreign = [address for address in html.loaded if urlsplit(address).netloc]
        assert foreign == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def _described(pages: dict[Path, Html]) -> Iterator[str]:
    for page, html in pages.items():
        if page.parent.name == "reference":
            yield from html.ids


def test_the_reference_has_every_public_name(pages: dict[Path, Html]) -> None:
    described = {name.rpartition(".")[2].lower() for name in _described(pages)}
    public = {*featurespeed.__all__, *featurespeed_workers.__all__} - {"__version__"}
    assert {name for name in public if name.lower() not in described} == set()


def test_the_reference_has_every_field(site: Path) -> None:
    text = (site / "reference" / "contract.html").read_text()
    for model in (JobRequest, Report):
        for part in model.model_json_schema()["$defs"].values():
            for field in part.get("properties", ()):
                assert f"<code>{field}</code>" in text, field


def test_the_reference_has_every_endpoint(site: Path, openapi_paths: list[str]) -> None:
    text = (site / "reference" / "endpoints.html").read_text()
    assert len(openapi_paths) > 10
    for endpoint in openapi_paths:
        assert f"<code>{endpoint}</code>" in text, endpoint
