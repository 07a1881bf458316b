"""docs/paper/README.md: what each figure should show, and what it showed."""

from __future__ import annotations

import datetime
import math
import os
import platform
from typing import Any

import torch

from benchmarks.paper.curves import Curve, Figure, slope
from benchmarks.paper.mean_field import angle_at_depth

INTRODUCTION = """\
# The paper's figures, measured through the engine

*The Feature Speed Formula* (Chizat & Netrapalli, arXiv 2311.18718), Fig. 1a–c and 2a–b. Every point is a request of
kind `measure`: one input in R^10, one output, target 1, loss ½(f − y)², ReLU, hidden std √(2/m), the first and the
last matrix frozen, balanced learning rates (Eq. 8), SGD. Speeds are exact derivatives; the paper takes one small step.

Bands are mean ± sd over seeds for angles, and quartiles around the median for sensitivities, which carry a heavy-tailed
1/|f − y|. The numbers of every seed stand in the JSON beside each figure. Dashed lines are our own limit of infinite
width, derived in [mean_field.py](../../benchmarks/paper/mean_field.py) with nothing fitted; the paper states the
powers, not the constants.
"""


def provenance(seconds: float, seeds: int) -> dict[str, Any]:
    """When, on what and how long."""
    return {
        "command": f"python -m benchmarks.paper --seeds {seeds}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"CPU, {os.cpu_count()} cores, {platform.machine()}; Python {platform.python_version()}; "
        f"torch {torch.__version__}, float32, {torch.get_num_threads()} threads",
        "seconds": round(seconds),
    }


def readme(figures: list[Figure], about: dict[str, Any]) -> str:
    """The page; ``figures`` in the paper's order."""
    by_name = {figure.name: {c.label: c for c in figure.curves} for figure in figures}
    sections = [
        _section("fig1a", "θ_v against v", _EXPECTED_1A, _measured_1a(by_name["fig1a"])),
        _section("fig1b", "θ_{L-1} against L", _EXPECTED_1B, _measured_1b(by_name["fig1b"])),
        _section("fig1c", "θ_{L-1} against c = √L·β", _EXPECTED_1C, _measured_1c(by_name["fig1c"])),
        _section("fig2a", "Sensitivity of the MLP", _EXPECTED_2A, _measured_2(by_name["fig2a"])),
        _section("fig2b", "Sensitivity of the ResNet", _EXPECTED_2B, _measured_2(by_name["fig2b"])),
    ]
    run = (
        f"Made by `{about['command']}` (or `make paper`) on {about['date']} in {about['seconds']} s.\n"
        f"Machine: {about['machine']}.\n"
    )
    return "\n".join([INTRODUCTION, run, *sections])


def _section(name: str, title: str, expected: str, measured: str) -> str:
    heading = f"## Fig. {name.removeprefix('fig')}: {title}\n![{title}]({name}.png) · [numbers]({name}.json)\n"
    return f"{heading}\nExpected: {expected}\n\nMeasured:\n\n{measured}\n"


_EXPECTED_1A = """\
in the MLP (β = 1) the angle rises to π/2 with cos θ_v ∝ v^(-1/2) (Prop 5.1); with β of order 1/√L it grows over
the layers to a limit below π/2 (Prop 5.2); with β = 1/L it stays near 0. The MLP leaves its power law where v is no
longer small against m = 200: products of that many random matrices no longer behave as at infinite width."""
_EXPECTED_1B = "flat in L for β = c/√L; falling to 0 for β = 1/L; rising to π/2 for the MLP."
_EXPECTED_1C = "one curve for all L: the angle depends on c alone once L is large."
_EXPECTED_2A = """\
NTK near 0 and flat next to the others, MF+µP growing like √L, FSC flat and of order 1. (NTK is MF+µP over √m: seen
alone it grows like √L too, and vanishes with the width.) Over L = 5 … 40 the finite depth adds 0.09 to every
exponent."""
_EXPECTED_2B = """\
flat in L for both β; of order 1 with σ_L = 1/m (FSC), of order 1/√m with σ_L = 1/√m (NTK; there f is of order 1, and
the median over seeds scatters with |f − y|)."""


def _measured_1a(curves: dict[str, Curve]) -> str:
    mlp = curves["β = 1 (MLP)"]
    window = range(mlp.at(5.0), mlp.at(50.0) + 1)
    x = [mlp.x[i] for i in window]
    found = slope(x, [math.cos(mlp.mean[i]) for i in window])
    limit = slope(x, [math.cos(mlp.theory[i]) for i in window])
    rows = [
        (
            label,
            *(f"{c.mean[c.at(v)]:.3f} ± {c.sd[c.at(v)]:.3f} ({c.theory[c.at(v)]:.3f})" for v in (10.0, 50.0, 199.0)),
        )
        for label, c in curves.items()
    ]
    note = f"Slope of log cos θ_v against log v for the MLP, v = 5 … 50: {found:.3f} (infinite width {limit:.3f})."
    return _table(("θ_v, rad (infinite width)", "v = 10", "v = 50", "v = 199"), rows) + f"\n\n{note}"


def _measured_1b(curves: dict[str, Curve]) -> str:
    depths = next(iter(curves.values())).x
    rows = [
        (label, *(f"{m:.3f} ± {s:.3f} ({t:.3f})" for m, s, t in zip(c.mean, c.sd, c.theory, strict=True)))
        for label, c in curves.items()
    ]
    return _table(("θ_{L-1}, rad (infinite width)", *(f"L = {d:g}" for d in depths)), rows)


def _measured_1c(curves: dict[str, Curve]) -> str:
    scales = next(iter(curves.values())).x
    rows = [(label, *(f"{m:.3f} ± {s:.3f}" for m, s in zip(c.mean, c.sd, strict=True))) for label, c in curves.items()]
    rows.append(("limit", *(f"{angle_at_depth(c):.3f}" for c in scales)))
    return _table(("θ_{L-1}, rad", *(f"c = {c:g}" for c in scales)), rows)


def _measured_2(curves: dict[str, Curve]) -> str:
    x = next(iter(curves.values())).x
    rows = [
        (
            label,
            *(f"{c.median[i]:.3f} ({c.theory[i]:.3f})" for i in (0, len(x) // 2, -1)),
            f"{c.exponent():+.2f} ({slope(c.x, c.theory):+.2f})",
        )
        for label, c in curves.items()
    ]
    heads = [f"L = {x[i]:g}" for i in (0, len(x) // 2, -1)]
    return _table(("S_{L-1}, median (infinite width)", *heads, "exponent in L"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
