"""Table 1: its exponents in width m and depth L come out of FSC's measurements; NTK and MF+µP are closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.paper import mean_field

from featurespeed.contract import JobRequest
from featurespeed_workers.local import answer

GRID = {
    (8, 64): 16,
    (8, 128): 24,
    (16, 128): 24,
    (8, 256): 24,
    (16, 256): 24,
    (32, 256): 16,
    (8, 512): 16,
    (16, 512): 16,
    (32, 512): 12,
}
TOLERANCE = 0.15
RELATIVE_SENSITIVITY = 100.0
"""τ is a free constant of Table 1. So large, the output is small beside its target, and ‖b_L‖ = |f − y| = 1 at any m
and L; at the default τ = 0.35 the output of these networks is of order 1 and the chance of f ≈ y blurs everything."""


EQUAL = dict.fromkeys(("input", "hidden", "output"), 1.0)
"""Table 1 is of equal contributions (Eq. 8), which are not the default."""
FSC = {"relative_sensitivity": RELATIVE_SENSITIVITY, "contributions": EQUAL}


def recommend(depth, width, seeds, rule="fsc", *, outputs=1, data=None, loss="mse"):
    request = {
        "kind": "recommend",
        "architecture": {"family": "mlp", "input_dim": 10, "width": width, "depth": depth, "output_dim": outputs},
        "data": data or {"kind": "sphere", "batch_size": 1, "targets": "ones"},
        "loss": loss,
        "optimizer": {"name": "sgd"},
        "scaling": {"rule": rule, **(FSC if rule == "fsc" else {})},
        "measurement": {"seeds": tuple(range(seeds))},
    }
    report = answer(JobRequest.model_validate(request), device="cpu")
    assert report.warnings == ()
    return report.recommendation


def depth_factor(L):
    """What the FL target is at depth L beyond its power √L, from closed forms; → 1.

    FSC sets D_{L-1} / (cos θ_{L-1} m ‖b_{L-1}‖_rms) = τ. With every block trained D_{L-1} = (L-1)/L, and at infinite
    width cos θ_{L-1} = sqrt(3n / (2n² + 1)) with n = L-1, not sqrt(3 / (2L)).
    """
    return (L - 1) / L / mean_field.cosine(L - 1, 1.0) / math.sqrt(2 * L / 3)


@pytest.fixture(scope="module")
def recommended():
    """log σ and log η (master rate left out) of every point of the grid: geometric means over seeds."""
    return {(L, m): _logarithms(recommend(L, m, seeds)) for (L, m), seeds in GRID.items()}


def _logarithms(found):
    first, *hidden, last = found.blocks
    log = math.log
    return {
        "sigma_1": log(first.init_std),
        "sigma_hid": np.mean([log(b.init_std) for b in hidden]),
        "sigma_L": log(last.init_std),
        "eta_1": log(first.lr / found.master_lr),
        "eta_hid": np.mean([log(b.lr / found.master_lr) for b in hidden]),
        "eta_L": log(last.lr / found.master_lr),
    }


@pytest.mark.parametrize(
    ("quantity", "in_width", "in_depth", "factor_power"),
    [
        ("sigma_1", 0, 0, 0),
        ("sigma_hid", -0.5, 0, 0),
        ("sigma_L", -1, 0.5, 1),  # ∝ 1/cos θ by Eq. 7
        ("eta_1", 1, -2, -2),  # ∝ 1/(L ‖b_1‖²) and ‖b_l‖ ∝ σ_L
        ("eta_hid", 0, -2, -2),
        ("eta_L", -1, -1, 0),
    ],
)
def test_fsc_recovers_the_exponents(recommended, quantity, in_width, in_depth, factor_power):
    """Least squares of log σ or log η on log m and log L.

    The known finite depth is divided out: at L = 8 … 32 it alone would add 0.11 to the exponent of σ_L and twice
    that to those of η_1 and η_hid. The grid keeps L/m ≤ 1/8, for corrections of that order remain. Beside them, the
    gradient's norm in the first block scatters from draw to draw by 2 sqrt(L/m) in the logarithm: 12 to 24 seeds.
    """
    design = np.array([[1, math.log(m), math.log(L)] for L, m in recommended])
    y = np.array([v[quantity] - factor_power * math.log(depth_factor(L)) for (L, _), v in recommended.items()])
    _, width_exponent, depth_exponent = np.linalg.lstsq(design, y, rcond=None)[0]
    assert width_exponent == pytest.approx(in_width, abs=TOLERANCE)
    assert depth_exponent == pytest.approx(in_depth, abs=TOLERANCE)


L, m, d, k = 5, 64, 10, 2
CLOSED = {
    "ntk": ([d**-0.5, (2 / m) ** 0.5, (k / m) ** 0.5], [1 / (L * d), 1 / (L * m), k / (L * m)]),
    "mf_mup": ([d**-0.5, (2 / m) ** 0.5, k**0.5 / m], [m / (L**1.5 * d), L**-1.5, k / (L**1.5 * m)]),
}
DATA = [
    {"kind": "sphere", "batch_size": 1},
    {"kind": "gaussian", "batch_size": 16, "seed": 7, "targets": "teacher"},
]


@pytest.mark.parametrize("rule", CLOSED)
@pytest.mark.parametrize("data", DATA, ids=lambda data: data["kind"])
def test_closed_forms(rule, data):
    found = recommend(L, m, 2, rule, outputs=k, data=data)
    stds, rates = CLOSED[rule]
    for block, group in zip(found.blocks, [0, *[1] * (L - 2), 2], strict=True):
        assert block.lr == pytest.approx(rates[group], rel=1e-12)
        assert block.init_std == pytest.approx(stds[group], rel=1e-12)
    assert found.master_lr == 1


@pytest.mark.parametrize("rule", CLOSED)
def test_closed_forms_do_not_look_at_the_data(rule):
    first, second = (recommend(L, m, 1, rule, outputs=k, data=data) for data in DATA)
    assert first == second


def test_cross_entropy_is_the_sparse_setting():
    """One-hot targets: Table 1 with k = 1."""
    found = recommend(L, m, 1, "ntk", outputs=k, data={"kind": "sphere", "batch_size": 4}, loss="cross_entropy")
    assert found.blocks[-1].lr == pytest.approx(1 / (L * m), rel=1e-12)
