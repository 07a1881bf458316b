"""What all figures share: a figure as plain data in plotly's terms, colours, axes, and how much is drawn."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#808080"
RED = "#C0392B"
"""Okabe and Ito's colours: told apart by the colour-blind, and in print by their lightness and the dashes beside."""
GRID = "rgba(128,128,128,0.25)"
CLEAR = "rgba(0,0,0,0)"

MOST_POINTS = 800
"""Points of a line: more than a screen has columns to show them."""
MOST_MARKS = 60
"""Blocks that have a mark or a bar each; more are lines alone."""
MOST_CELLS = 200
"""Rows and columns of a heat map."""
NAMED_BLOCKS = 14
"""Up to so many blocks are named along the axis; more are numbered."""


@dataclass(frozen=True)
class Figure:
    """A figure in plotly's terms (``data`` and ``layout`` of its JSON), with its title and what it shows in words."""

    name: str
    title: str
    caption: str
    data: tuple[dict[str, Any], ...]
    layout: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plotly's JavaScript and Python take it."""
        return {"data": list(self.data), "layout": self.layout}


def text(value: str) -> str:
    """A name as text: plotly reads some HTML in labels."""
    return html.escape(value, quote=False)


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """To five digits, for smaller files; what is not finite leaves a gap."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.5g}") for v in values]


def picked(count: int, most: int = MOST_POINTS) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def layout(height: int = 360, **parts: Any) -> dict[str, Any]:
    """A layout without a background of its own, so that it fits light pages and dark ones."""
    return {
        "height": height,
        "margin": {"l": 70, "r": 20, "t": 30, "b": 60},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"size": 13},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        **parts,
    }


def axis(title: str, **parts: Any) -> dict[str, Any]:
    """An axis with its title; the title says the unit."""
    own = {"title": {"text": title}, "gridcolor": GRID, "zeroline": False, "linecolor": GREY, "showline": True}
    return {**own, "ticks": "outside", **parts}


def log_axis(title: str, **parts: Any) -> dict[str, Any]:
    """A logarithmic axis, labelled as 0.01, 0.1, 1."""
    return axis(title, type="log", tickformat="~g", **parts)


def block_axis(names: Sequence[str], title: str = "block", **parts: Any) -> dict[str, Any]:
    """The axis of blocks, numbered from 1; few blocks are named."""
    if len(names) > NAMED_BLOCKS:
        numbered = f"{title} (1 is the input, {len(names)} the output)" if title else ""
        return axis(numbered, range=[0.5, len(names) + 0.5], **parts)
    ticks = {"tickmode": "array", "tickvals": list(range(1, len(names) + 1)), "ticktext": [text(n) for n in names]}
    return axis(title, **ticks, tickangle=-35 if len(names) > 6 else 0, range=[0.5, len(names) + 0.5], **parts)


def level(value: float, axes: tuple[str, str] = ("x", "y"), color: str = GREY) -> dict[str, Any]:
    """A dashed line across a panel."""
    x, y = axes
    where = {"xref": f"{x} domain", "x0": 0, "x1": 1, "yref": y, "y0": value, "y1": value}
    return {"type": "line", **where, "line": {"color": color, "width": 1.5, "dash": "dash"}}


def label(words: str, value: float, axes: tuple[str, str] = ("x", "y"), **parts: Any) -> dict[str, Any]:
    """Words at a level, at the right end; ``value`` in the axis' own terms (its logarithm on a log axis)."""
    x, y = axes
    where = {"xref": f"{x} domain", "x": 1, "xanchor": "right", "yref": y, "y": value, "yanchor": "bottom"}
    return {"text": words, **where, "showarrow": False, "font": {"size": 11, "color": GREY}, **parts}
