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
