"""JobRequest: the question that a user asks."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from featurespeed.contract.agreement import check_agreement
from featurespeed.contract.architecture import Architecture
from featurespeed.contract.base import MAX_BLOCKS, BlockName, Model, Positive, Seed, Width
from featurespeed.contract.blocks import group_of, is_selected
from featurespeed.contract.checkpoint import Checkpoint
from featurespeed.contract.data import Data
from featurespeed.contract.optimizer import AdamW, Optimizer
from featurespeed.contract.refinement import Refine
from featurespeed.defaults import RELATIVE_SENSITIVITY, contribution_weights, feature_step, largest_decay

Kind = Literal["measure", "recommend"]
Rule = Literal["fsc", "ntk", "mf_mup", "mup", "pytorch_default"]
Loss = Literal["mse", "cross_entropy"]
Method = Literal["exact", "double_backward", "central_difference", "finite_difference"]
"""How ḟ is found: forward-mode differentiation, the vjp differentiated twice, differences of two passes or of one."""

Granularity = Literal["block", "tensor", "group"]
Group = Literal["input", "hidden", "output"]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class Scaling(Model):
    """How scales and rates are chosen. ``rule`` defaults to ``fsc``, for ``measure`` to ``pytorch_default``.

    ``contributions``: the weight of every block of a group in the loss decay. Balanced rates give each block that
    trains the part (its weight) / (sum of their weights); a block of weight 0 has rate 0. Groups that are not named
    have their default weight (see :mod:`featurespeed.defaults`), as has ``feature_step``.

    ``granularity``: what has a rate of its own. ``block``; ``tensor``: each parameter tensor, those of a block having
    equal parts of its contribution; ``group``: the first block, the last, and all others together, which also share
    the std of their matrices (six numbers, as in the paper).

    ``refine``: short training probes around the closed-form answer (rule ``fsc`` of kind ``recommend``); off unless
    given. ``base_width``: the width at which rule ``mup`` has the constants of the standard parametrization.

    ``zero_output`` (kind ``recommend``, rule ``fsc``): the output matrices start at 0 (paper, App. B); the report gives
    the output block a learning rate for the first step.
    """

    rule: Rule | None = None
    granularity: Granularity = "block"
    relative_sensitivity: Annotated[float, Field(ge=1e-4, le=1000)] = RELATIVE_SENSITIVITY
    feature_step: Annotated[float, Field(ge=1e-4, le=1000)] | None = None
    contributions: Annotated[dict[Group, Weight], Field(min_length=1, max_length=3)] | None = None
    refine: Refine | None = None
    base_width: Width | None = None
    zero_output: bool = False


class MeasurementSettings(Model):
    """Over which seeds, for how long and how precisely to measure.

    With ``steps`` > 0 the network is also trained, and measured every ``every`` steps. ``master_lr`` is the δt of that
    training; unless given it follows from the feature step under balanced learning rates and is 1 under explicit ones.
    ``stability``: measure the speeds of backward passes and gradients at step 0; unless given, for ``recommend`` only.
    ``kernel_probes``: random vectors for each layer's M_1/√M_2 at step 0, each about the cost of a training step.
    """

    seeds: Annotated[
        tuple[Seed, ...],
        Field(min_length=1, max_length=64, fail_fast=True, json_schema_extra={"uniqueItems": True}),
    ] = (0, 1, 2)
    steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    every: Annotated[int, Field(ge=1, le=100_000)] = 10
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    method: Method = "exact"
    master_lr: Positive | None = None
    stability: bool | None = None
    kernel_probes: Annotated[int, Field(ge=0, le=1000, json_schema_extra={"not": {"const": 1}})] = 0

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names a seed twice")
        return self

    @field_validator("kernel_probes")
    @classmethod
    def _error_needs_two(cls, probes: int) -> int:
        if probes == 1:
            raise ValueError("one probe has no error bar; ask for 0, or for 2 and more")
        return probes


Std = Annotated[float, Field(ge=0, le=1e6)]
LearningRate = Annotated[float, Field(ge=0, le=1e12)]
LearningRates = Annotated[dict[BlockName, LearningRate], Field(max_length=MAX_BLOCKS + 1)]


class JobRequest(Model):
    """One question: ``measure`` (angles and speeds under a given scaling) or ``recommend`` (the scaling itself).

    ``frozen`` lists blocks that do not train, by name or group (``input``, ``hidden``, ``output``).
    ``initialization`` and ``learning_rates`` (kind ``measure``) map block names or groups to the std of the block's
    weight matrices and to its learning rate; a block name wins over its group. ``checkpoint`` (kind ``recommend``): the
    rates are balanced at its weights and optimizer state, and scales stay; the seeds are then of batches alone.
    """

    kind: Kind
    architecture: Architecture
    data: Data
    checkpoint: Checkpoint | None = None
    loss: Loss
    optimizer: Optimizer = AdamW(name="adamw")
    scaling: Scaling = Scaling()
    initialization: Annotated[dict[BlockName, Std], Field(min_length=1, max_length=MAX_BLOCKS + 1)] | None = None
    learning_rates: Literal["balanced"] | LearningRate | LearningRates = "balanced"
    frozen: Annotated[tuple[BlockName, ...], Field(max_length=MAX_BLOCKS + 1, fail_fast=True)] = ()
    measurement: MeasurementSettings = MeasurementSettings()

    @property
    def sha256(self) -> str:
        """SHA-256 of the request in canonical JSON, defaults filled in: the same question has the same digest."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def cells_total(self) -> int:
        """Into how many cells, the pieces computed at once, a job is cut: one a seed, and one a probe."""
        seeds, refine = len(self.measurement.seeds), self.scaling.refine
        return seeds + (refine.total_factors * min(refine.seeds, seeds) if refine is not None else 0)

    @property
    def rule(self) -> Rule:
        """The scaling rule: the one asked for, else the kind's default."""
        return self.scaling.rule or ("fsc" if self.kind == "recommend" else "pytorch_default")

    @property
    def measures_stability(self) -> bool:
        """Whether the stability at initialization is measured: as asked, else the kind's default."""
        asked = self.measurement.stability
        return self.kind == "recommend" if asked is None else asked

    @property
    def trained_blocks(self) -> list[str]:
        """The names of the blocks that train, in forward order."""
        frozen = frozenset(self.frozen)
        return [name for name in self.architecture.block_names if not is_selected(name, frozen)]

    @property
    def contributions(self) -> dict[str, float]:
        """The weight of each group in the loss decay: as asked, else the default."""
        given = self.scaling.contributions or {}
        hidden = sum(group_of(name) == "hidden" for name in self.trained_blocks)
        return contribution_weights(hidden) | {str(group): weight for group, weight in given.items()}

    @property
    def feature_step(self) -> float:
        """κ: as asked, else the default for the optimizer."""
        return self.scaling.feature_step or feature_step(self.optimizer.name)

    @property
    def largest_decay(self) -> float | None:
        """The part of the loss beyond which no steady step may go: of SGD under ``mse``, where κ is not asked."""
        return largest_decay(self.optimizer.name, self.loss) if self.scaling.feature_step is None else None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        check_agreement(self)
        return self
