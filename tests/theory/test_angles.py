"""Angles of wide ReLU networks at initialization under balanced rates: Prop 5.1 (MLP) and Prop 5.2 (ResNet)."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from benchmarks.paper import mean_field

from featurespeed.contract import JobRequest
from featurespeed_workers.local import answer


def measure(family, depth, width, seeds, **more):
    """Layers of a network of the paper at initialization, on one input; all blocks train under balanced rates."""
    architecture = {"family": family, "input_dim": 10, "width": width, "depth": depth, "output_dim": 1, **more}
    std = {"input": math.sqrt(0.1), "hidden": math.sqrt(2 / width), "output": 1 / width}
    request = {
        "kind": "measure",
        "architecture": architecture,
        "data": {"kind": "sphere", "batch_size": 1, "targets": "ones"},
        "loss": "mse",
        "optimizer": {"name": "sgd"},
        "initialization": std,
        "measurement": {"seeds": tuple(range(seeds))},
    }
    return answer(JobRequest.model_validate(request), device="cpu").measurements[0].layers


def fit(x, y):
    """Slope of y against x, both (points × seeds) flat, and its standard error from the scatter around the line."""
    design = np.stack([np.ones_like(x), x], axis=1)
    coefficients, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * squares[0] / (len(x) - 2)
    return coefficients[1], math.sqrt(covariance[1, 1])


def test_mlp_cosine_falls_with_the_root_of_the_layer():
    """At width ∞ cos θ_v = sqrt(3v / (2v² + 1)): over v = 4 … 32 its log-log slope is −0.495.

    Tolerance 0.06. The finite width moves 1/cos² by a relative amount of order v/m ≤ 1/16, hence the slope by about
    0.5 · (1/16) / log 8 = 0.015. The slope of one draw has sd 0.06 (measured: the layers of a draw are dependent),
    so the mean of 16 has 0.015: the tolerance is the bias and three of these.
    """
    width, depth, seeds, first, last = 512, 34, 16, 4, 32
    layers = measure("mlp", depth, width, seeds)[first - 1 : last]
    v = np.log(np.arange(first, last + 1))
    curves = np.log(np.array([layer.cos.values for layer in layers]))
    slopes = np.polyfit(v, curves, 1)[0]
    assert slopes.mean() == pytest.approx(-0.5, abs=0.06)
    assert slopes.std(ddof=1) < 0.09, "too much scatter for the tolerance to mean anything"
    # and the constant: cos θ_v √v → √(3/2)
    for layer, number in zip(layers, range(first, last + 1), strict=True):
        assert statistics.geometric_mean(layer.cos.values) == pytest.approx(mean_field.cosine(number, 1.0), rel=0.1)


@pytest.mark.parametrize("c", [0.5, 1.0])
def test_resnet_angle_does_not_depend_on_depth(c):
    """θ_{L-1} for β = c/√L: its slope in log L is that of the finite-depth formula (≈ 0.01 rad), within 3 se."""
    depths, width, seeds = (24, 48, 96, 192), 256, 6
    beta = {"branch_scale": {"coefficient": c, "depth_exponent": -0.5}}
    angles = np.array([measure("resnet", L, width, seeds, **beta)[-2].angle.values for L in depths])
    theory = np.array([mean_field.angle(L - 1, c / math.sqrt(L)) for L in depths])
    x = np.repeat(np.log(depths), seeds)
    slope, error = fit(x, angles.flatten())
    expected, _ = fit(np.log(depths), theory)
    assert error < 0.012, "too much scatter to call anything flat"
    assert abs(slope - expected) <= 3 * error
    assert abs(slope) < 0.04  # the MLP's angle gains more than 0.1 rad over this range
    assert angles.mean() == pytest.approx(theory.mean(), rel=0.05)


def test_resnet_angle_grows_with_the_branch_scale():
    angles = [
        measure("resnet", 64, 256, 4, branch_scale={"coefficient": c, "depth_exponent": -0.5})[-2].angle.values
        for c in (0.25, 0.5, 1.0, 2.0)
    ]
    assert all(max(smaller) < min(larger) for smaller, larger in pairwise(angles))
