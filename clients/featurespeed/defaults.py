"""The constants that the paper leaves open, in one place, with where each comes from.

The paper fixes exponents in width and depth, not constants. These were found by experiment: seven small nets
(transformer, ResNet and MLP; SGD and Adam; 120 to 200 steps, one seed each) against a sweep of 18 runs. Of the settings
tried (τ from 0.12 to 1, κ from 0.35 to 4) this pair diverged on no net; transformers matched the best swept run, plain
nets and ResNets lost 0.08 to 0.42 in mean log-loss. On some nets another pair did better.
"""

from __future__ import annotations

from collections.abc import Mapping

RELATIVE_SENSITIVITY = 0.25
"""τ: relative speed of the last hidden feature per unit of loss decay, (‖ḟ_{L-1}‖ / ‖f_{L-1}‖) / (−L̇).

τ = 0.12 was worse nearly everywhere; τ = 1 made plain nets with SGD diverge."""

FEATURE_STEP = 1.0
"""κ: nominal relative change of f_{L-1} in one step at peak learning rate, δt · ‖ḟ_{L-1}‖ / ‖f_{L-1}‖.

The best κ was between 0.5 and 4 on every net, mostly 1 to 2, while the best δt moved 30-fold."""

CONTRIBUTIONS: Mapping[str, float] = {"input": 1.0, "hidden": 1.0, "output": 1.0}
"""Weight of every block of a group in the loss decay: C_l is its block's weight over the sum of all weights.

Equal weights are Eq. 8, and what the experiments above had. Thm 6.3 asks only for C_1 + C_hid = Θ(1), C_L = O(1)."""

CONTRIBUTIONS_BY_OPTIMIZER: Mapping[str, Mapping[str, float]] = {}
"""Weights that are others for an optimizer, by its name in the contract and by group; these win. None so far."""


def contribution_weights(optimizer: str) -> dict[str, float]:
    """The weights of the three groups for an optimizer, by its name in the contract."""
    return {**CONTRIBUTIONS, **CONTRIBUTIONS_BY_OPTIMIZER.get(optimizer, {})}


BASE_WIDTH = 128
"""The width at which rule ``mup`` is the standard parametrization: PyTorch's learning rate, weights N(0, 1/fan_in)."""

WARMUP_FRACTION = 0.05
"""Part of the training over which the learning rates rise linearly from 0: all experiments had it."""

REFINE_FACTORS = (0.5, 1.0, 2.0)
"""Multiples of κ that probes try: of the same experiments, one of these met or beat the sweep on six of seven nets."""

SENSITIVITY_TOLERANCE = 0.02
"""The output scale is iterated until the measured τ is this close to its target, relatively."""

RECOMMENDATION_BATCHES = 4
"""Batches over which the quantities behind a recommendation are averaged: one batch differs from the next."""

FEATURE_RMS_RANGE = (0.5, 2.0)
"""SP: rms of every hidden feature. The paper's Θ(1); rule fsc sets 1, and lets a transformer's stream grow to √2."""

FEATURE_STEP_FACTOR = 4.0
"""FL: the relative change of f_{L-1} in one step may differ from κ by this factor. On every net of the experiments the
best κ was within it of the default, 1."""

LOSS_DECAY_RANGE = (0.1, 10.0)
"""LD: nominal loss decay of one step as a part of the loss: the paper's Θ(1) in the loss's own size.

It may exceed 1, as gradients shrink within the step: the best steps of the experiments promised up to 16 nats at a loss
of 2.3."""

CONTRIBUTION_FACTOR = 4.0
"""BC: a block's contribution to the loss decay may differ from what it should be by this factor.

That is of the same order; from one batch to the next alone it moves by up to 1.5."""

STABILITY_BOUND = 10.0
"""FS, BS, S: relative speeds per nat, the paper's O(1).

Beyond it the state is another one before the loss has fallen by a tenth of a nat. On nine small nets (MLPs of 4 to 20
layers, ResNets, transformers) the recommendation had 0.2 to 2.2 for all three; PyTorch's defaults 0.3 to 9 where nets
train well (ResNets, transformers) and 10 to 5e7 in plain MLPs."""
