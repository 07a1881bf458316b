"""The states of a network that a report tells of, and their quantities as lines over the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featurespeed.contract.report import LayerMeasurement, Measurement, Report
from featurespeed.figures.style import BLUE, GREEN, MOST_MARKS, ORANGE, PURPLE, picked, rounded, text

Quantity = Callable[[Measurement, LayerMeasurement], Sequence[float | None]]
"""Of a layer of a measurement, for every seed."""


@dataclass(frozen=True)
class State:
    """One measured state, and how it is drawn."""

    label: str
    measured: Measurement
    color: str
    dash: str
    symbol: str


def states_of(report: Report, other: Report | None = None) -> list[State]:
    """Before, recommended, and after training where there was one; of two reports with their names before."""
    own = [State(name, m, *_STYLES[name]) for name, m in _measured(report)]
    if other is None:
        return own
    ours = [State(f"this: {s.label}", s.measured, s.color, s.dash, s.symbol) for s in own if s.label != "before"]
    theirs = [State(f"other: {n}", m, PURPLE, _STYLES[n][1], "x") for n, m in _measured(other) if n != "before"]
    return ours + theirs


_STYLES = {
    "before": (ORANGE, "dash", "square"),
    "recommended": (BLUE, "solid", "circle"),
    "measured": (BLUE, "solid", "circle"),
    "after training": (GREEN, "dot", "diamond"),
}


def _measured(report: Report) -> Iterator[tuple[str, Measurement]]:
    if report.before is not None:
        yield "before", report.before
    if report.measurements:
        yield "recommended" if report.kind == "recommend" else "measured", report.measurements[0]
    if len(report.measurements) > 1:
        yield "after training", report.measurements[-1]


def names_of(states: Sequence[State]) -> list[str]:
    """The blocks of the deepest state."""
    deepest = max((s.measured for s in states), key=lambda m: len(m.layers))
    return [layer.name for layer in deepest.layers]


def lines(
    states: Sequence[State], quantity: Quantity, axes: tuple[str, str] = ("x", "y"), *, legend: bool = True
) -> Iterator[dict[str, Any]]:
    """For each state the band over its seeds, and the mean."""
    for state in states:
        layers = state.measured.layers
        chosen = [layers[i] for i in picked(len(layers))]
        x = [layer.index for layer in chosen]
        values = [[v for v in quantity(state.measured, layer) if v is not None] for layer in chosen]
        where = {"xaxis": axes[0], "yaxis": axes[1], "legendgroup": state.label, "type": "scatter"}
        if max(map(len, values), default=0) > 1:
            yield from _band(state, x, values, where)
        yield {
            **where,
            "x": x,
            "y": rounded([sum(v) / len(v) if v else None for v in values]),
            "customdata": [text(layer.name) for layer in chosen],
            "name": state.label,
            "mode": "lines+markers" if len(x) <= MOST_MARKS else "lines",
            "line": {"color": state.color, "dash": state.dash, "width": 2},
            "marker": {"symbol": state.symbol, "size": 7, "color": state.color},
            "showlegend": legend,
            "hovertemplate": f"%{{customdata}}: %{{y:.4g}}<extra>{state.label}</extra>",
        }


def _band(
    state: State, x: list[int], values: Sequence[Sequence[float]], where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    edges = ([min(v) if v else None for v in values], None), ([max(v) if v else None for v in values], "tonexty")
    for y, fill in edges:
        yield {
            **where,
            "x": x,
            "y": rounded(y),
            "mode": "lines",
            "line": {"width": 0, "color": state.color},
            "fill": fill or "none",
            "fillcolor": _faint(state.color),
            "showlegend": False,
            "hoverinfo": "skip",
        }


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"
