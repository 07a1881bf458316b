"""The benchmark's figure: regret of every contender on every cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.quality.contenders import CONTENDERS, SWEEP
from benchmarks.quality.figures_of_merit import Score
from benchmarks.quality.suite import Cell

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "D", "s", "^", "v", "P", "X")
CLIP = 2.0
"""Regrets beyond are drawn at the edge."""


def draw(scored: Sequence[Score], cells: Sequence[Cell], path: Path) -> None:
    """One row a cell, one mark a contender; the line at 0 is the sweep's best."""
    shown = [cell for cell in cells if any(s.cell.name == cell.name for s in scored)]
    row = {cell.name: i for i, cell in enumerate(reversed(shown))}
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(shown) + 2.0), layout="constrained")
    axes.axvline(0, color="0.4", lw=1)
    axes.axvspan(0, 0.15, color="0.92")
    names = [c for c in CONTENDERS if c != SWEEP]
    for k, contender in enumerate(names):
        own = [s for s in scored if s.contender == contender]
        x = [min(max(s.regret, -CLIP), CLIP) for s in own]
        y = [row[s.cell.name] for s in own]
        ours = contender.startswith("featurespeed")
        axes.scatter(
            x, y, s=46 if ours else 22, marker=MARKERS[k], color=COLOURS[k], label=contender, zorder=3 if ours else 2
        )
    labels = [f"{c.name} · {'fit' if c.half == 'fit' else 'held out'}" for c in reversed(shown)]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlim(-CLIP * 1.05, CLIP * 1.05)
    axes.grid(axis="y", color="0.9", lw=0.5)
    axes.set_xlabel(f"regret: mean log-loss over training − best of the sweep (nats of log; drawn within ±{CLIP:g})")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
