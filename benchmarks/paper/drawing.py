"""Figures as PNG."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.paper.curves import Curve, Figure

mpl.use("Agg")
LOGARITHMIC = {"fig1a", "fig1b", "fig1c"}
OUTSIDE = {"fig1b", "fig2b"}
"""Figures without room for a legend between their curves."""


def draw(figure: Figure, path: Path) -> None:
    """Write the figure: measured curves with a band over seeds, theory dashed."""
    cosines = figure.name == "fig1a"
    chart, axes = plt.subplots(1, 2 if cosines else 1, figsize=(12 if cosines else 7, 5), squeeze=False)
    _panel(axes[0][0], figure)
    if cosines:
        _cosines(axes[0][1], figure)
    chart.suptitle(f"Fig. {figure.name.removeprefix('fig')}: {figure.title}")
    chart.tight_layout()
    chart.savefig(path, dpi=130)
    plt.close(chart)


def _panel(ax: Axes, figure: Figure) -> None:
    for i, curve in enumerate(figure.curves):
        _curve(ax, curve, f"C{i}", angles=figure.name.startswith("fig1"))
        ax.plot(curve.x, curve.theory, "--", color=_theory_colour(figure, i), lw=1, label=_theory_label(figure, i))
    if figure.name.startswith("fig1"):
        ax.axhline(math.pi / 2, color="0.6", lw=0.8)
        ax.text(1, math.pi / 2, "π/2 ", color="0.4", va="top", ha="right", transform=ax.get_yaxis_transform())
    if figure.name in LOGARITHMIC:
        ax.set_xscale("log")
    ax.set_xticks(*_ticks(figure))
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel(figure.x)
    ax.set_ylabel(_mathematical(figure.y))
    ax.grid(alpha=0.3)
    if figure.name in OUTSIDE:
        ax.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    else:
        ax.legend(fontsize=8)


def _ticks(figure: Figure) -> tuple[list[float], list[str]]:
    """The points measured; of the many layers of Fig. 1a, a few."""
    x = figure.curves[0].x
    at = x if len(x) < 20 else [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
    return at, [f"{v:g}" for v in at]


def _mathematical(label: str) -> str:
    return label.replace("θ_v", "$θ_v$").replace("_{L-1}", "$_{L-1}$")


def _curve(ax: Axes, curve: Curve, colour: str, *, angles: bool) -> None:
    """Angles: mean ± sd. Sensitivities, whose 1/|f - y| has a heavy tail: median and quartiles."""
    if angles:
        middle = curve.mean
        low = [m - s for m, s in zip(middle, curve.sd, strict=True)]
        high = [m + s for m, s in zip(middle, curve.sd, strict=True)]
    else:
        middle = curve.median
        low, high = ([q[i] for q in curve.quartiles] for i in (0, 1))
    marker = "o" if len(curve.x) < 20 else ""
    ax.plot(curve.x, middle, color=colour, marker=marker, ms=4, lw=1.5, label=curve.label)
    ax.fill_between(curve.x, low, high, color=colour, alpha=0.2, lw=0)


def _cosines(ax: Axes, figure: Figure) -> None:
    """The same angles as cos θ_v in log-log axes, where the MLP's power law is a straight line."""
    for i, curve in enumerate(figure.curves):
        ax.plot(curve.x, [math.cos(a) for a in curve.mean], color=f"C{i}", lw=1.5, label=curve.label)
        ax.plot(curve.x, [math.cos(a) for a in curve.theory], "--", color=f"C{i}", lw=1)
    guide = [x for x in curve.x if x >= 5]
    ax.plot(guide, [1.6 * x**-0.5 for x in guide], ":", color="black", label="slope -1/2")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(*_ticks(figure))
    ax.minorticks_off()
    ax.set_yticks([0.1, 0.2, 0.5, 1.0], ["0.1", "0.2", "0.5", "1"])
    ax.set_xlabel(figure.x)
    ax.set_ylabel(_mathematical("cos θ_v"))
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)


def _theory_colour(figure: Figure, i: int) -> str:
    return "black" if figure.name == "fig1c" else f"C{i}"


def _theory_label(figure: Figure, i: int) -> str | None:
    if i != len(figure.curves) - 1:
        return None
    return "limit of large width, then depth" if figure.name == "fig1c" else "infinite width (dashed)"
