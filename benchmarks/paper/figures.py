"""The five figures as sweeps over depth and branch scale."""

from __future__ import annotations

import math

from benchmarks.paper import mean_field
from benchmarks.paper.curves import Curve, Figure
from benchmarks.paper.protocol import INPUTS, measure, request

BRANCH_SCALES = {
    "β = 1/L": lambda L: 1 / L,
    "β = 1/(2√L)": lambda L: 0.5 / math.sqrt(L),
    "β = 1/√L": lambda L: 1 / math.sqrt(L),
    "β = 2/√L": lambda L: 2 / math.sqrt(L),
    "β = 1 (MLP)": lambda L: 1.0,
}
SIGMA_OUT = {
    "NTK, σ_L = 1/√m": lambda m, L: 1 / math.sqrt(m),
    "MF+µP, σ_L = 1/m": lambda m, L: 1 / m,
    "FSC, σ_L = √L/m": lambda m, L: math.sqrt(L) / m,
}
Angles = list[list[float]]
"""θ_v in radians, (layers v = 2 … L-1) × seeds."""


def figure_1a(seeds: int) -> Figure:
    """θ_v against v."""
    L, m = 200, 200
    v = list(range(2, L))
    curves = []
    for label, beta in BRANCH_SCALES.items():
        angles = _angles(L, m, beta(L), seeds, about=f"1a, {label}")
        curves.append(Curve(label, [float(i) for i in v], angles, [mean_field.angle(i - 1, beta(L)) for i in v]))
    return Figure("fig1a", f"ResNet, L = {L}, m = {m}", "layer v", "θ_v (rad)", curves)


def figure_1b(seeds: int) -> Figure:
    """θ_{L-1} against L."""
    depths, m = [10, 20, 50, 100, 200], 200
    curves = []
    for label, beta in BRANCH_SCALES.items():
        angles = [_angles(L, m, beta(L), seeds, about=f"1b, {label}, L = {L}")[-1] for L in depths]
        theory = [mean_field.angle(L - 2, beta(L)) for L in depths]
        curves.append(Curve(label, [float(L) for L in depths], angles, theory))
    return Figure("fig1b", f"ResNet, m = {m}", "depth L", "θ_{L-1} (rad)", curves)


def figure_1c(seeds: int) -> Figure:
    """θ_{L-1} against c = √L β; the theory is the limit of large depth, the same for every L."""
    scales, m = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0], 500
    curves = []
    for L in (30, 100, 500):
        angles = [_angles(L, m, c / math.sqrt(L), seeds, about=f"1c, L = {L}, c = {c:g}")[-1] for c in scales]
        curves.append(Curve(f"L = {L}", scales, angles, [mean_field.angle_at_depth(c) for c in scales]))
    return Figure("fig1c", f"ResNet, m = {m}", "c = √L · β", "θ_{L-1} (rad)", curves)


def figure_2a(seeds: int) -> Figure:
    """S_{L-1} of the MLP against L."""
    depths, m = [5, 8, 10, 15, 20, 30, 40], 400
    curves = []
    for label, sigma in SIGMA_OUT.items():
        values, theory = [], []
        for L in depths:
            asked = request("mlp", L, m, seeds, output_std=sigma(m, L), input_norm=1.0)
            layer = measure(asked, about=f"2a, {label}, L = {L}").layers[-2]
            values.append(_known(layer.sensitivity.values))
            # ‖b_{L-1}‖_rms: half of the ReLUs are off, and |f - y| ≈ 1
            theory.append(mean_field.sensitivity(L - 2, 1.0, m, sigma(m, L) / math.sqrt(2)))
        curves.append(Curve(label, [float(L) for L in depths], values, theory))
    return Figure("fig2a", f"MLP, m = {m}", "depth L", "S_{L-1} (feature rms per unit of loss)", curves)


def figure_2b(seeds: int) -> Figure:
    """S_{L-1} of the ResNet against L."""
    depths, m = [20, 40, 60, 80, 100], 400
    curves = []
    for name in ("β = 1/√L", "β = 1/L"):
        beta = BRANCH_SCALES[name]
        for rule, std in (("FSC, σ_L = 1/m", 1 / m), ("NTK, σ_L = 1/√m", 1 / math.sqrt(m))):
            values, theory = [], []
            for L in depths:
                asked = request("resnet", L, m, seeds, beta=beta(L), output_std=std, input_norm=1.0)
                layer = measure(asked, about=f"2b, {name}, {rule}, L = {L}").layers[-2]
                values.append(_known(layer.sensitivity.values))
                theory.append(mean_field.sensitivity(L - 2, beta(L), m, std))
            curves.append(Curve(f"{name}; {rule}", [float(L) for L in depths], values, theory))
    return Figure("fig2b", f"ResNet, m = {m}", "depth L", "S_{L-1} (feature rms per unit of loss)", curves)


def _angles(L: int, m: int, beta: float, seeds: int, *, about: str) -> Angles:
    asked = request("resnet", L, m, seeds, beta=beta, output_std=1 / m, input_norm=math.sqrt(INPUTS))
    return [_known(layer.angle.values) for layer in measure(asked, about=about).layers[1:-1]]


def _known(values: tuple[float | None, ...]) -> list[float]:
    assert None not in values, "the feature does not move"
    return [v for v in values if v is not None]
