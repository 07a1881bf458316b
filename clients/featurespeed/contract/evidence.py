"""What a report found beside its answer: the branch scale for a target angle, and losses of short runs."""

from __future__ import annotations

from featurespeed.contract.base import Model, Seed


class BranchScale(Model):
    """The branch scale β found for ``branch_scale: {"target_angle": θ}``, in place of which it can be put.

    ``angle`` is the output angle θ_{L-1} (radians) measured at β, the mean of ``angles``: one for each of ``seeds``, a
    mean over batches, under balanced learning rates.
    """

    beta: float
    target_angle: float
    angle: float
    seeds: tuple[Seed, ...]
    angles: tuple[float, ...]


Curve = tuple[float | None, ...]


class LossCurves(Model):
    """Training losses of two short runs: under the recommendation, and under PyTorch's defaults.

    ``pytorch_default`` has PyTorch's initialization under the same seed and the learning rate 0.001 (torch.optim's
    default) for every block. All else is the same: batches, optimizer, frozen blocks, and the recommended schedule
    (linear warm-up, then cosine to 0).

    Entry i is the mean loss of ``every`` successive steps from ``steps[i]`` on, each before its update; ``every`` is 1
    for runs of up to 500 steps. The curves are means over seeds; ``…_by_seed`` has a row a seed, in the seeds' order.
    From where a seed's loss is not finite, its entries are ``None``, and so are those of the mean.
    """

    every: int
    steps: tuple[int, ...]
    recommended: Curve
    pytorch_default: Curve
    recommended_by_seed: tuple[Curve, ...]
    pytorch_default_by_seed: tuple[Curve, ...]


class Evidence(Model):
    """What speaks for a recommendation. ``loss_curves`` is there with ``measurement.steps`` > 0."""

    loss_curves: LossCurves | None = None
