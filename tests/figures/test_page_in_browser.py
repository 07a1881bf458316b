"""The page opens offline in a real browser, and draws every figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurespeed.figures import figures_of
from featurespeed.figures.page import page
from tests.figures.made_up import curves, report
from tests.service.browser import Browser, opened

NAMES = ["<img src=x onerror='window.hacked=1'>", "hidden_2", "output"]

COVERED = """[...document.querySelectorAll('[data-figure=angles_along_training] .ytick text')].filter(tick => {
    const title = document.querySelector('[data-figure=angles_along_training] .ytitle').getBoundingClientRect();
    const box = tick.getBoundingClientRect();
    return box.left < title.right && title.left < box.right && box.top < title.bottom && title.top < box.bottom;
}).map(tick => tick.textContent)"""
"""Names of blocks that the title of their axis lies on."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        browser.call("Network.enable")
        browser.call(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        yield browser


@pytest.mark.parametrize("width", [360, 1600])
def test_every_figure_is_drawn_offline(browser: Browser, tmp_path: Path, width: int) -> None:
    shown = report(names=NAMES, steps=(0, 10), evidence=curves(20))
    file = tmp_path / "report.html"
    file.write_text(page(shown), encoding="utf-8")
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.call("Page.navigate", url=file.as_uri())
    count = len(figures_of(shown))
    places = "[...document.querySelectorAll('[data-figure]')]"
    browser.until(f"{places}.length === {count} && {places}.every(p => p.querySelector('.main-svg .xtick'))")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll by themselves
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate(COVERED) == []
    text = browser.evaluate("document.body.innerText")
    assert "onerror" in text  # a name is text
    assert browser.complaints == []
