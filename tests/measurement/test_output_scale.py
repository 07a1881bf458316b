"""The search for the output scale, on functions whose answer is known."""

from __future__ import annotations

import math

import pytest

from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.rules.output_scale import FIRST_SCALE, MAX_ROUNDS, Trial, find_output_scale


def search(tau, target: float):
    tried = []

    def try_scale(scale: float) -> Trial:
        tried.append(scale)
        return Trial(scale, tau(scale), {}, loss=1.0)

    return find_output_scale(try_scale, target, lambda round_: None), tried


REACHED = {
    "inverse": (lambda s: 3 / s, 0.25, 12.0),
    "inverse square": (lambda s: 3 / s**2, 0.25, math.sqrt(12)),
    "far above": (lambda s: 1e6 / s, 0.25, 4e6),
    "far below": (lambda s: 1e-6 / s, 0.25, 4e-6),
    "steep": (lambda s: 1 / s / (1 + (s / 2) ** 20), 0.01, 2.434),
    "before a pole": (lambda s: 1 / (s * abs(1 - s / 20)), 0.25, 5.528),
    "saturating": (lambda s: 1 / s + 0.2, 0.25, 20.0),
}


@pytest.mark.parametrize("case", REACHED)
def test_the_smallest_root_is_found_in_a_few_rounds(case: str) -> None:
    tau, target, root = REACHED[case]
    found, tried = search(tau, target)
    assert found.shortfall is None
    assert tau(found.trial.scale) == pytest.approx(target, rel=0.021)
    assert found.trial.scale == pytest.approx(root, rel=0.3 if case == "saturating" else 0.05)
    assert len(tried) <= 12


def test_a_minimum_above_the_target_is_found_and_named() -> None:
    found, tried = search(lambda s: s + 1 / s, 0.25)  # smallest, 2, at s = 1
    assert found.shortfall == "τ is smallest there"
    assert found.trial.relative_sensitivity == pytest.approx(2.0, rel=0.01)
    assert len(tried) < MAX_ROUNDS


def test_a_scale_that_does_not_matter_ends_the_search() -> None:
    found, tried = search(lambda s: 1 + 1e-3 / s, 0.25)
    assert "does not respond" in found.shortfall
    assert len(tried) <= 4


def test_scales_that_cannot_be_measured_bound_the_search() -> None:
    def tau(s: float) -> float:
        if s > 3:
            raise MeasurementError("zero-gradient", "saturated")
        return 1 / s

    found, _ = search(tau, 0.4)
    assert found.trial.scale == pytest.approx(2.5, rel=0.03)
    found, _ = search(tau, 0.1)
    assert found.shortfall == "beyond, saturated"
    assert found.trial.scale == pytest.approx(3.0, rel=0.05)


def test_scales_too_small_to_be_measured_bound_the_search_too() -> None:
    def tau(s: float) -> float:
        if s < 0.01:
            raise MeasurementError("no-balance", "decayed")
        return 0.003 / s

    found, _ = search(tau, 0.35)  # at 0.0086
    assert found.shortfall == "beyond, decayed"
    assert found.trial.scale == pytest.approx(0.01, rel=0.05)


def test_weight_decay_raises_the_start() -> None:
    def tau(s: float) -> float:
        if s < 1:
            raise MeasurementError("no-balance", "against the gradient")
        return 1 / s

    found, tried = search(tau, 0.25)
    assert tried[0] == FIRST_SCALE
    assert found.trial.scale == pytest.approx(4.0, rel=0.03)


def test_a_network_that_cannot_be_measured_at_all_is_an_error() -> None:
    def tau(s: float) -> float:
        raise MeasurementError("zero-gradient", "dead")

    with pytest.raises(MeasurementError, match="dead"):
        search(tau, 0.25)
