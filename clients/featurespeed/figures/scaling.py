"""The recommendation beside PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurespeed.contract.report import BlockRecommendation, Report
from featurespeed.defaults import PYTORCH_LEARNING_RATE
from featurespeed.figures.style import (
    BLUE,
    MOST_MARKS,
    ORANGE,
    PURPLE,
    Figure,
    block_axis,
    label,
    layout,
    level,
    log_axis,
    picked,
    rounded,
    text,
)


def scaling(report: Report, other: Report | None = None) -> Figure | None:
    """Init std and learning rate of every block as multiples of the defaults; ``None`` if nothing is recommended."""
    sources = [(r, name) for r, name in ((report, "this"), (other, "other")) if r is not None and r.recommendation]
    if report.recommendation is None:
        return None
    names = [block.name for block in report.recommendation.blocks]
    data = []
    for r, name in sources:
        assert r.recommendation is not None
        prefix = f"{name}: " if other is not None else ""
        chosen = [r.recommendation.blocks[i] for i in picked(len(r.recommendation.blocks))]
        colors = (BLUE, ORANGE) if name == "this" else (PURPLE, PURPLE)
        data.append(_points(chosen, [b.init_ratio for b in chosen], f"{prefix}init std", colors[0], "circle", ""))
        rates = [b.lr / PYTORCH_LEARNING_RATE for b in chosen]
        data.append(_points(chosen, rates, f"{prefix}learning rate", colors[1], "square", "2"))
    return Figure(
        "scaling",
        "Recommended scales and learning rates, as multiples of the defaults",
        f"Above 1: larger than the model's own default initialization, and than the learning rate "
        f"{PYTORCH_LEARNING_RATE:g}. Bars are the spread over seeds.",
        tuple(data),
        layout(
            480,
            xaxis=block_axis(names, "", anchor="y"),
            xaxis2=block_axis(names, anchor="y2"),
            yaxis=log_axis("init std ÷ default", domain=[0.58, 1], anchor="x"),
            yaxis2=log_axis(f"lr ÷ {PYTORCH_LEARNING_RATE:g}", domain=[0, 0.42], anchor="x2"),
            shapes=[level(1), level(1, ("x2", "y2"))],
            annotations=[label("default", 0), label("default", 0, ("x2", "y2"))],
        ),
    )


def _points(
    blocks: Sequence[BlockRecommendation], ratios: Sequence[float | None], name: str, color: str, symbol: str, axes: str
) -> dict[str, Any]:
    """Markers with bars of one geometric standard deviation; what is zero has no place on the axis."""
    shown = [ratio if ratio else None for ratio in ratios]
    spreads = [b.init_std_over_seeds if axes == "" else b.lr_over_seeds for b in blocks]
    up = [None if y is None else y * (s.factor_sd - 1) for y, s in zip(shown, spreads, strict=True)]
    down = [None if y is None else y * (1 - 1 / s.factor_sd) for y, s in zip(shown, spreads, strict=True)]
    return {
        "type": "scatter",
        "xaxis": f"x{axes}",
        "yaxis": f"y{axes}",
        "mode": "lines+markers" if len(blocks) <= MOST_MARKS else "lines",
        "x": [b.index for b in blocks],
        "y": rounded(shown),
        "error_y": {"type": "data", "symmetric": False, "array": rounded(up), "arrayminus": rounded(down)}
        if len(blocks) <= MOST_MARKS
        else {},
        "customdata": [
            f"{text(b.name)}: " + (f"std {b.init_std:.4g}" if axes == "" else f"lr {b.lr:.4g}") for b in blocks
        ],
        "name": name,
        "line": {"color": color, "width": 1.5},
        "marker": {"symbol": symbol, "size": 9, "color": color},
        "hovertemplate": f"%{{customdata}}, × %{{y:.3g}}<extra>{name}</extra>",
    }
