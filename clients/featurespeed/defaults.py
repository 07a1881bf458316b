"""The constants that the paper leaves open, in one place, with where each comes from.

The paper fixes exponents in width and depth, not constants. These were fitted on half of the cells of the quality
benchmark (``benchmarks/quality``: MLPs, ResNets and transformers on four tasks, SGD with momentum 0.9 and AdamW, 200
steps) by what they lose against the best run of a sweep; docs/quality.md has the other half, and what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

RELATIVE_SENSITIVITY = 0.35
"""τ: relative speed of the last hidden feature per unit of loss decay, (‖ḟ_{L-1}‖ / ‖f_{L-1}‖) / (−L̇).

Of 0.12, 0.25, 0.5 and 1, deep nets under SGD did best with 0.5 and shallow ones with 0.25, Adam with either; 0.12 and 1
were worse. The best runs of the sweeps have 0.05 to 0.6."""

FEATURE_STEPS: Mapping[str, float] = {"sgd": 2.0, "adam": 1.2, "adamw": 1.2, "signsgd": 0.5, "muon": 0.25}
"""κ by optimizer: nominal relative change of f_{L-1} in one step at peak rate, δt · ‖ḟ_{L-1}‖ / ‖f_{L-1}‖.

AdamW did best with 1 to 2, and loses more above than below. SGD with momentum 0.9 (of the steady step) did best with
0.5 to 16, where 4 diverges on some nets: 2 is on the safe side, and what ``refine`` is for. ``signsgd`` and ``muon``,
whose steps do not shrink with the gradient: from three nets on digits, one seed, κ = ¼ and 1 (final losses of an MLP, a
ResNet and a ViT under Muon 0.0006, 0.0007, 0.005 and 0.36, 0.022, 0.004; under SignSGD 0.010, 0.016, 0.22 and 0.030,
0.0003, 0.055)."""

LARGEST_DECAY = 0.25
"""Most of the loss, to first order, that one steady step of SGD may take under ``mse`` where κ is not asked for.

A quadratic loss keeps its gradient until targets are met, and what overshoots has a larger one: a step must not promise
more than there is (as Polyak's does not). With a half, one net in three was slow or diverged. Under cross-entropy
gradients shrink at once, and the best steps are of several times the loss to first order; Adam's do not grow."""


def feature_step(optimizer: str) -> float:
    """κ for an optimizer, by its name in the contract."""
    return FEATURE_STEPS[optimizer]


def largest_decay(optimizer: str, loss: str) -> float | None:
    """The part of the loss beyond which no steady step may go, by the contract's names; ``None``: no bound."""
    return LARGEST_DECAY if (optimizer, loss) == ("sgd", "mse") else None


def contribution_weights(hidden_blocks: int) -> dict[str, float]:
    """The weight of every block of a group in the loss decay: C_l is its block's weight over the sum of all weights.

    Input : all hidden blocks together : output = 1 : √n : 1 for n hidden blocks, so that each hidden block has 1/√n.
    Thm 6.3 asks only for C_1 + C_hid = Θ(1), C_L = O(1). Between equal blocks (1 : n : 1, Eq. 8) and equal groups
    (1 : 1 : 1) this did best: under SGD deep nets lose with equal blocks, under Adam plain nets with equal groups.
    """
    return {"input": 1.0, "hidden": 1 / math.sqrt(max(1, hidden_blocks)), "output": 1.0}


BASE_WIDTH = 128
"""The width at which rule ``mup`` is the standard parametrization: PyTorch's learning rate, weights N(0, 1/fan_in)."""

WARMUP_FRACTION = 0.05
"""Part of the training over which the learning rates rise linearly from 0: all experiments had it."""

REFINE_STEPS = 50
"""Steps of a probe. The beginning of a run tells which κ is best for all of it: choosing by the first 30 of 200 steps
lost 0.07 in mean log-loss against the best of five κ, by the first 50 steps 0.03 (mean over 60 nets and settings)."""

REFINE_FACTORS = (0.5, 1.0, 2.0)
"""Multiples of κ that probes try: of the same experiments, one of these met or beat the sweep on six of seven nets."""

SENSITIVITY_TOLERANCE = 0.02
"""The output scale is iterated until the measured τ is this close to its target, relatively."""

RECOMMENDATION_BATCHES = 4
"""Batches over which the quantities behind a recommendation are averaged: one batch differs from the next."""

PYTORCH_LEARNING_RATE = 1e-3
"""The default ``lr`` of torch.optim.SGD, Adam, AdamW and Muon: what the recommendation is compared with."""

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
