"""Figures show the report's own numbers, in terms that plotly knows; large reports stay small and quick."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from featurespeed.contract import Report
from featurespeed.figures import Figure, figures_of
from featurespeed.figures.page import page
from featurespeed.figures.style import MOST_CELLS, MOST_POINTS, picked
from tests.figures.made_up import curves, measurement, report, verdicts

EVERYTHING = report(depth=5, steps=(0, 10, 20), evidence=curves(30))


def traces(figure: Figure, name: str) -> list[dict[str, Any]]:
    return [t for t in figure.data if t.get("name") == name]


def test_a_report_has_the_figures_that_it_has_numbers_for() -> None:
    every = ["scaling", "angles", "contributions", "sizes", "losses", "angles_along_training"]
    assert list(figures_of(EVERYTHING)) == every
    assert list(figures_of(report())) == ["scaling", "angles", "contributions", "sizes"]
    measured = report(kind="measure", recommendation=None, before=None)
    assert list(figures_of(measured)) == ["angles", "contributions", "sizes"]


@pytest.mark.parametrize("other", [None, report(depth=3, evidence=curves(7))], ids=["alone", "compared"])
def test_plotly_knows_every_word_of_them(other: Report | None) -> None:
    """Its own validators refuse a property or a value that they do not know."""
    figures = EVERYTHING.plot(other)
    assert list(figures) == list(figures_of(EVERYTHING, other, verdicts=True))
    for name, figure in figures.items():
        assert len(figure.data) == len(figures_of(EVERYTHING, other)[name].data)
        for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
            assert axis.title.text is not None


def test_angles_are_those_of_the_report_with_the_range_over_seeds_and_a_right_angle() -> None:
    figure = figures_of(EVERYTHING)["angles"]
    for name, measured in (
        ("before", EVERYTHING.before),
        ("recommended", EVERYTHING.measurements[0]),
        ("after training", EVERYTHING.measurements[2]),
    ):
        [line] = traces(figure, name)
        assert line["y"] == pytest.approx([layer.angle.mean for layer in measured.layers], rel=1e-4)
        lower, upper = (t for t in figure.data if t["legendgroup"] == name and t is not line)
        assert lower["y"] == pytest.approx([min(layer.angle.values) for layer in measured.layers], rel=1e-4)
        assert upper["y"] == pytest.approx([max(layer.angle.values) for layer in measured.layers], rel=1e-4)
    [right] = figure.layout["shapes"]
    assert right["y0"] == pytest.approx(math.pi / 2)
    assert figure.layout["xaxis"]["ticktext"] == ["input", "hidden_2", "hidden_3", "hidden_4", "output"]


def test_contributions_are_parts_of_the_whole_beside_the_level_that_is_wanted() -> None:
    figure = figures_of(EVERYTHING)["contributions"]
    [bars] = traces(figure, "recommended")
    parts = [layer.contribution.mean for layer in EVERYTHING.measurements[0].layers]
    assert bars["y"] == pytest.approx([100 * part / sum(parts) for part in parts], rel=1e-4)
    [level] = traces(figure, "balanced level")  # 1 : ½ : ½ : 2, and hidden_2 does not train
    assert level["y"] == pytest.approx([25, 0, 12.5, 12.5, 50])


def test_scales_and_rates_are_multiples_of_the_defaults() -> None:
    scale, rate = figures_of(EVERYTHING)["scaling"].data
    assert scale["y"] == [2.0] * 5
    assert scale["error_y"]["array"][0] == pytest.approx(2 * (math.exp(0.3156) - 1), rel=1e-3)
    assert rate["y"] == pytest.approx([4, None, 4, 4, 4])  # what does not train has no place on a logarithmic axis


def test_sizes_are_relative_speeds_and_only_what_is_positive() -> None:
    figure = figures_of(EVERYTHING)["sizes"]
    speed = next(t for t in traces(figure, "recommended") if t["yaxis"] == "y2")
    layers = EVERYTHING.measurements[0].layers
    each = [[s / r for s, r in zip(x.feature_speed.values, x.feature_rms.values, strict=True)] for x in layers]
    assert speed["y"] == pytest.approx([sum(v) / len(v) for v in each], rel=1e-4)


def test_a_run_that_diverged_ends() -> None:
    [mean] = traces(figures_of(EVERYTHING)["losses"], "PyTorch default")
    assert mean["y"][14] == pytest.approx(2 / 15, rel=1e-4)
    assert mean["y"][15] is None
    assert figures_of(EVERYTHING)["losses"].layout["yaxis"]["type"] == "log"


def test_verdicts_are_a_table_with_reasons() -> None:
    judged = report(properties=verdicts())
    assert "properties" not in figures_of(judged)  # pages have a table of their own
    figure = judged.plot()["properties"]
    [table] = figure.data
    columns = dict(zip(table.header["values"], table.cells["values"], strict=True))
    assert list(columns["property"]) == ["SP", "FL", "LD", "BC", "FS", "BS", "S"]
    assert columns["before"][0] == "3 ✗ fails"
    assert columns["after"][0] == "1 ✓ holds"
    assert columns["reason"][0] == "before: features are &lt;b&gt;large&lt;/b&gt;"
    colors = dict(zip(table.header["values"], table.cells["font"]["color"], strict=True))
    assert len(set(colors["before"])) == 1  # all fail
    assert colors["before"][0] != colors["after"][0]


def test_two_reports_are_told_apart() -> None:
    figure = figures_of(EVERYTHING, report(depth=3))["angles"]
    assert {t["name"] for t in figure.data if "name" in t} == {
        "this: recommended",
        "this: after training",
        "other: recommended",
    }
    assert figure.layout["xaxis"]["ticktext"][-1] == "output"


def test_what_is_picked_is_even_and_keeps_both_ends() -> None:
    assert picked(5, 10) == [0, 1, 2, 3, 4]
    chosen = picked(10_001, 11)
    assert chosen == list(range(0, 10_001, 1000))


def test_five_hundred_layers_and_ten_thousand_steps_stay_small_and_quick() -> None:
    names = ["input", *(f"hidden_{i}" for i in range(2, 500)), "output"]
    one = measurement(names)
    measured = tuple(one.model_copy(update={"step": step}) for step in range(10_000))
    large = report(names=names, measurements=measured, evidence=curves(10_000))
    began = time.process_time()
    figures, written = figures_of(large), page(large)
    assert time.process_time() - began < 30  # of 5 million angles
    assert len(written.encode()) < 8_000_000
    heat = figures["angles_along_training"].data[0]
    assert len(heat["z"]) == len(heat["x"]) == MOST_CELLS
    assert heat["y"][0] == 1
    assert heat["z"][0][0] == pytest.approx(0.525 + 1.05 * 2 / 1e5, abs=1e-4)  # layers 1 to 3 are averaged
    assert max(len(t["x"]) for f in figures.values() for t in f.data) <= MOST_POINTS


def test_names_are_text() -> None:
    hostile = report(names=["<b>one</b>", "<script>alert(1)</script>", "&amp;"])
    for figure in figures_of(hostile).values():
        assert "<b>one" not in str(figure.data) + str(figure.layout)
    written = page(hostile, title="</title><script>alert(2)</script>")
    assert "<script>alert" not in written
    assert "&lt;script&gt;alert(1)" in written
