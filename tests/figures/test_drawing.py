"""Images have the numbers of the figures: matplotlib's own objects are looked at."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from featurespeed.figures import figures_of
from featurespeed.figures.drawing import _draw, drawn
from tests.figures.made_up import report, verdicts
from tests.figures.test_figures import EVERYTHING

FIGURES = figures_of(EVERYTHING)


@pytest.fixture
def part() -> Any:
    whole = plt.figure()
    yield whole.subfigures(1, 1)
    plt.close(whole)


def test_lines_and_bands(part: Any) -> None:
    _draw(FIGURES["angles"], part)
    [panel] = part.axes
    lines = {line.get_label(): line for line in panel.get_lines()}
    [expected] = [t for t in FIGURES["angles"].data if t.get("name") == "recommended"]
    assert lines["recommended"].get_ydata().tolist() == expected["y"]
    assert len(panel.collections) == 3  # a band for each state
    edges = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == min(FIGURES["angles"].data[0]["y"])
    assert edges.max() == max(FIGURES["angles"].data[1]["y"])
    assert panel.get_ylabel() == "angle θ (radians)"


def test_bars(part: Any) -> None:
    _draw(FIGURES["contributions"], part)
    heights = [[bar.get_height() for bar in bars] for bars in part.axes[0].containers]
    assert heights == [t["y"] for t in FIGURES["contributions"].data if t["type"] == "bar"]


def test_heat_map(part: Any) -> None:
    _draw(FIGURES["angles_along_training"], part)
    mesh = part.axes[0].collections[0]
    assert np.array_equal(mesh.get_array(), np.array(FIGURES["angles_along_training"].data[0]["z"]))


def test_logarithmic_panels(part: Any) -> None:
    _draw(FIGURES["sizes"], part)
    assert [panel.get_yscale() for panel in part.axes] == ["log"] * 4
    assert part.axes[1].get_title(loc="left").startswith("relative feature speed")


def test_verdicts(part: Any) -> None:
    _draw(figures_of(report(properties=verdicts()), verdicts=True)["properties"], part)
    [table] = part.axes[0].tables
    texts = {place: cell.get_text() for place, cell in table.get_celld().items()}
    assert texts[0, 0].get_text() == "property"
    assert texts[1, 3].get_text() == "3 ✗ fails"
    assert texts[1, 5].get_text() == "before: features are <b>large</b>"
    assert texts[1, 3].get_color() != texts[1, 4].get_color()


def test_files() -> None:
    pixels = matplotlib.image.imread(io.BytesIO(drawn(EVERYTHING, "png")))
    height, width, _ = pixels.shape
    assert (width, height > width) == (1170, True)
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50  # not an empty sheet
    svg = drawn(EVERYTHING, "svg")
    assert svg.startswith(b"<?xml")
    assert b"<dc:date>" not in svg  # the same report gives the same drawing, whenever
