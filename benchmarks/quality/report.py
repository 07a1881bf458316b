"""The benchmark's tables in Markdown: contenders in short, then every cell."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.quality.contenders import CONTENDERS, SWEEP
from benchmarks.quality.figures_of_merit import Score, interval, score
from benchmarks.quality.suite import Cell

BAR = "bar: median ≤ 0, worst ≤ +0.15, none diverged, cost ≤ 8 %, spread ≤ 1.3"


def scores(cells: Sequence[Cell]) -> list[Score]:
    """All scores that there are results for, the sweep itself left out."""
    found = (score(cell, contender) for contender in CONTENDERS if contender != SWEEP for cell in cells)
    return [s for s in found if s is not None]


def summary(scored: Sequence[Score], half: str) -> Iterator[str]:
    """One row a contender over the cells of one half."""
    titles = ("contender", "cells", "median regret", "worst", "final loss ÷ sweep's", "diverged", "cost", "LR spread")
    yield "| " + " | ".join(titles) + " |"
    yield "|---" * len(titles) + "|"
    for contender in CONTENDERS:
        own = [s for s in scored if s.contender == contender and s.cell.half == half]
        if own:
            yield _summary_row(contender, own)


def _summary_row(contender: str, own: Sequence[Score]) -> str:
    regrets = [s.regret for s in own]
    low, high = interval(regrets)
    worst = max(own, key=lambda s: s.regret)
    spreads = [s.seed_spread for s in own if s.seed_spread is not None]
    return (
        f"| {contender} | {len(own)} | {statistics.median(regrets):+.2f} ({low:+.2f} … {high:+.2f}) "
        f"| {worst.regret:+.2f} ({worst.cell.name}) | {statistics.median(s.loss_ratio for s in own):.2f} "
        f"| {sum(s.diverged for s in own)} of {3 * len(own)} | {_cost(own)} "
        f"| {f'{statistics.median(spreads):.2f} (worst {max(spreads):.2f})' if spreads else '–'} |"
    )


def _cost(own: Sequence[Score]) -> str:
    costs = [s.cost for s in own]
    return f"{statistics.median(costs):.1%} (worst {max(costs):.1%})"


def details(scored: Sequence[Score], cells: Sequence[Cell]) -> Iterator[str]:
    """One row a cell: every contender's regret ± its standard error; D marks diverged runs."""
    names = [c for c in CONTENDERS if any(s.contender == c for s in scored)]
    by_key = {(s.cell.name, s.contender): s for s in scored}
    yield "| cell | half | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for cell in cells:
        entries = [by_key.get((cell.name, name)) for name in names]
        if any(entries):
            yield f"| {cell.name} | {cell.half} | " + " | ".join(_entry(s) for s in entries) + " |"


def _entry(s: Score | None) -> str:
    return "–" if s is None else f"{s.regret:+.2f} ± {s.error:.2f}" + (f" D{s.diverged}" if s.diverged else "")


def whole(cells: Sequence[Cell]) -> str:
    """Both halves in short, and every cell."""
    scored = scores(cells)
    parts = []
    for half in ("held-out", "fit"):
        parts += [f"**Cells {half}** ({BAR})", "", *summary(scored, half), ""]
    parts += ["**Every cell**: regret ± standard error over three seeds (paired); D: diverged runs", ""]
    return "\n".join([*parts, *details(scored, cells), ""])
