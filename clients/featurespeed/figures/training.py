"""Figures along training: the angles of all blocks, and the losses with and without the recommendation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from featurespeed.contract.evidence import Curve
from featurespeed.contract.report import Measurement, Report
from featurespeed.figures.style import (
    BLUE,
    MOST_CELLS,
    NAMED_BLOCKS,
    ORANGE,
    PURPLE,
    Figure,
    axis,
    layout,
    log_axis,
    picked,
    rounded,
    text,
)

GREATEST_RATIO = 5.0
"""From this ratio of the largest loss to the smallest on, losses have a logarithmic axis."""


def angles_along_training(report: Report) -> Figure | None:
    """The angle of every block at every measured step; ``None`` without training."""
    measured = report.measurements
    if len(measured) < 2:
        return None
    depth = len(measured[0].layers)
    rows, columns = _groups(depth), _groups(len(measured))
    z = [rounded([_mean_angle(measured, layers, steps) for steps in columns]) for layers in rows]
    names = [text(_span([measured[0].layers[i].name for i in layers])) for layers in rows]
    note = " Neighbours are averaged." if depth > MOST_CELLS or len(measured) > MOST_CELLS else ""
    named = {"tickmode": "array", "tickvals": list(range(1, depth + 1)), "ticktext": names}
    return Figure(
        "angles_along_training",
        "Angles along training",
        f"The angle θ of every block (mean over seeds) at every measured step.{note}",
        (
            {
                "type": "heatmap",
                "x": [measured[steps[0]].step for steps in columns],
                "y": [layers[0] + 1 for layers in rows],
                "z": z,
                "customdata": [[name] * len(columns) for name in names],
                "colorscale": "Cividis",
                "colorbar": {"title": {"text": "θ (radians)", "side": "right"}, "thickness": 14},
                "hovertemplate": "%{customdata}, step %{x}: θ = %{z:.3f}<extra></extra>",
            },
        ),
        layout(
            max(320, min(620, 120 + 22 * len(rows))),
            xaxis=axis("step", showgrid=False),
            # names may be long: the title moves out of their way
            yaxis=axis("block", **(named if depth <= NAMED_BLOCKS else {}), showgrid=False, automargin=True)
            | {"title": {"text": "block", "standoff": 10}},
        ),
    )


def _groups(count: int) -> list[list[int]]:
    """At most MOST_CELLS runs of neighbouring indices."""
    starts = picked(count + 1, min(count, MOST_CELLS) + 1)
    return [list(range(a, b)) for a, b in pairwise(starts)]


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def _mean_angle(measured: Sequence[Measurement], layers: Sequence[int], steps: Sequence[int]) -> float | None:
    known = [m for s in steps for i in layers if (m := measured[s].layers[i].angle.mean) is not None]
    return statistics.fmean(known) if known else None


def losses(report: Report, other: Report | None = None) -> Figure | None:
    """Training losses of the runs under the recommendation and under PyTorch's defaults; ``None`` without any."""
    data: list[dict[str, Any]] = []
    for r, prefix, colors in ((report, "this: ", (BLUE, ORANGE)), (other, "other: ", (PURPLE, PURPLE))):
        if r is None or r.evidence is None or r.evidence.loss_curves is None:
            continue
        curves, label = r.evidence.loss_curves, prefix if other is not None else ""
        data += _curve(curves.steps, curves.recommended_by_seed, f"{label}recommended", colors[0], "solid")
        data += _curve(curves.steps, curves.pytorch_default_by_seed, f"{label}PyTorch default", colors[1], "dash")
    if not data:
        return None
    values = [v for trace in data for v in trace["y"] if v is not None and v > 0]
    wide = bool(values) and max(values) / min(values) > GREATEST_RATIO
    title = "training loss (nat, or its own unit)"
    return Figure(
        "losses",
        "Training loss with and without the recommendation",
        "Short runs from the recommended scales and rates, and from PyTorch's defaults at learning rate 0.001, with "
        "the same seeds, batches and schedule. Thin lines are single seeds; one that ends has diverged.",
        tuple(data),
        layout(xaxis=axis("step"), yaxis=log_axis(title) if wide else axis(title)),
    )


def _curve(steps: Sequence[int], by_seed: Sequence[Curve], name: str, color: str, dash: str) -> list[dict[str, Any]]:
    chosen = picked(len(steps))
    x = [steps[i] for i in chosen]
    shared = {"type": "scatter", "mode": "lines", "x": x, "legendgroup": name}
    thin = [
        {
            **shared,
            "y": rounded([own[i] for i in chosen]),
            "line": {"color": color, "width": 0.8, "dash": dash},
            "opacity": 0.45,
            "showlegend": False,
            "hoverinfo": "skip",
        }
        for own in by_seed
        if len(by_seed) > 1
    ]
    means = [[v for own in by_seed if (v := own[i]) is not None] for i in chosen]
    y = [statistics.fmean(v) if len(v) == len(by_seed) else None for v in means]
    mean = {**shared, "y": rounded(y), "name": name, "line": {"color": color, "width": 2.2, "dash": dash}}
    return [*thin, {**mean, "hovertemplate": f"step %{{x}}: %{{y:.4g}}<extra>{name}</extra>"}]
