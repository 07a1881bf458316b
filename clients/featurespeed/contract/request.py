"""JobRequest: the question that a user asks."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from featurespeed.contract.architecture import Architecture, Mlp, Transformer
from featurespeed.contract.base import Model, Positive, Seed, Width
from featurespeed.contract.data import Data, Digits, Gaussian, Sphere, Tokens
from featurespeed.contract.optimizer import AdamW, Optimizer
from featurespeed.contract.refinement import Refine
from featurespeed.defaults import FEATURE_STEP, RELATIVE_SENSITIVITY, contribution_weights

Kind = Literal["measure", "recommend"]
Rule = Literal["fsc", "ntk", "mf_mup", "mup", "pytorch_default"]
Loss = Literal["mse", "cross_entropy"]


Granularity = Literal["block", "tensor", "group"]
Group = Literal["input", "hidden", "output"]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class Scaling(Model):
    """How scales and rates are chosen. ``rule`` defaults to ``fsc``, for ``measure`` to ``pytorch_default``.

    ``contributions``: the weight of every block of a group in the loss decay. Balanced rates give each block that
    trains the part (its weight) / (sum of their weights); a block of weight 0 has rate 0. Groups that are not named
    have their default weight (see :mod:`featurespeed.defaults`).

    ``granularity``: what has a rate of its own. ``block``; ``tensor``: each parameter tensor, those of a block having
    equal parts of its contribution; ``group``: the first block, the last, and all others together, which also share
    the std of their matrices (six numbers, as in the paper).

    ``refine``: short training probes around the closed-form answer (rule ``fsc`` of kind ``recommend``); off unless
    given. ``base_width``: the width at which rule ``mup`` has the constants of the standard parametrization.
    """

    rule: Rule | None = None
    granularity: Granularity = "block"
    relative_sensitivity: Annotated[float, Field(ge=1e-4, le=1000)] = RELATIVE_SENSITIVITY
    feature_step: Annotated[float, Field(ge=1e-4, le=1000)] = FEATURE_STEP
    contributions: Annotated[dict[Group, Weight], Field(min_length=1)] | None = None
    refine: Refine | None = None
    base_width: Width | None = None


class MeasurementSettings(Model):
    """Over which seeds, for how long and how precisely to measure.

    With ``steps`` > 0 the network is also trained, and measured every ``every`` steps. ``master_lr`` is the δt of that
    training; unless given it follows from the feature step under balanced learning rates and is 1 under explicit ones.
    """

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=64)] = (0, 1, 2)
    steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    every: Annotated[int, Field(ge=1, le=100_000)] = 10
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    method: Literal["exact", "finite_difference"] = "exact"
    master_lr: Positive | None = None

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names a seed twice")
        return self


Std = Annotated[float, Field(ge=0, le=1e6)]
LearningRate = Annotated[float, Field(ge=0, le=1e12)]


class JobRequest(Model):
    """One question: ``measure`` (angles and speeds under a given scaling) or ``recommend`` (the scaling itself).

    ``frozen`` lists blocks that do not train, by name or group (``input``, ``hidden``, ``output``).
    ``initialization`` and ``learning_rates`` (kind ``measure``) map block names or groups to the std of the block's
    weight matrices and to its learning rate; a block name wins over its group.
    """

    kind: Kind
    architecture: Architecture
    data: Data
    loss: Loss
    optimizer: Optimizer = AdamW(name="adamw")
    scaling: Scaling = Scaling()
    initialization: Annotated[dict[str, Std], Field(min_length=1)] | None = None
    learning_rates: Literal["balanced"] | LearningRate | dict[str, LearningRate] = "balanced"
    frozen: tuple[str, ...] = ()
    measurement: MeasurementSettings = MeasurementSettings()

    @property
    def sha256(self) -> str:
        """SHA-256 of the request in canonical JSON, defaults filled in: the same question has the same digest."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def cells_total(self) -> int:
        """Into how many cells, the pieces computed at once, a job is cut: one a seed, and one a probe."""
        probes = len(self.scaling.refine.factors) if self.scaling.refine is not None else 0
        return len(self.measurement.seeds) * (1 + probes)

    @property
    def rule(self) -> Rule:
        """The scaling rule: the one asked for, else the kind's default."""
        return self.scaling.rule or ("fsc" if self.kind == "recommend" else "pytorch_default")

    @property
    def contributions(self) -> dict[str, float]:
        """The weight of each group in the loss decay: as asked, else the default for the optimizer."""
        given = self.scaling.contributions or {}
        return contribution_weights(self.optimizer.name) | {str(group): weight for group, weight in given.items()}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for check in (_check_data, _check_targets, _check_optimizer, _check_rule, _check_blocks, _check_balance):
            check(self)
        return self


def _check_data(request: JobRequest) -> None:
    """The data must have the shape that the architecture takes."""
    architecture, data = request.architecture, request.data
    tokens = isinstance(architecture, Transformer) and architecture.image is None
    image = architecture.image if isinstance(architecture, Transformer) else None
    if isinstance(data, Tokens) and not tokens:
        raise ValueError(f"data.kind: 'tokens' needs a transformer with vocab_size, not {_described(architecture)}")
    if tokens and isinstance(data, Gaussian | Sphere | Digits):
        raise ValueError(
            f"data.kind: {data.kind!r} has no tokens; a transformer with vocab_size takes 'tokens' or 'dataset'"
        )
    if not isinstance(data, Digits):
        return
    if image is not None and (image.height, image.width, image.channels) != (8, 8, 1):
        raise ValueError(
            f"architecture.image: digits are 8 × 8 × 1, not {image.height} × {image.width} × {image.channels}"
        )
    if not isinstance(architecture, Transformer) and architecture.input_dim != 64:
        raise ValueError(f"architecture.input_dim: digits have 64 coordinates, not {architecture.input_dim}")
    if (outputs := architecture.output_dim) is None or outputs < 10:
        raise ValueError(f"architecture.output_dim: digits have 10 classes, not {outputs}")


def _described(architecture: Architecture) -> str:
    return "one with image" if isinstance(architecture, Transformer) else f"family {architecture.family!r}"


def _check_targets(request: JobRequest) -> None:
    """The targets must be what the loss compares with."""
    data, loss = request.data, request.loss
    if loss == "cross_entropy" and request.architecture.output_dim == 1:
        raise ValueError("architecture.output_dim: cross_entropy needs at least 2 classes, not 1")
    if isinstance(data, Tokens) and loss == "mse":
        raise ValueError("loss: 'mse' has no meaning for data.kind 'tokens'; use 'cross_entropy'")
    if not isinstance(data, Gaussian | Sphere) or data.targets is None:
        return
    if loss == "cross_entropy" and data.targets in ("gaussian", "ones"):
        raise ValueError(f"data.targets: {data.targets!r} are no labels; cross_entropy takes 'classes' or 'teacher'")
    if loss == "mse" and data.targets == "classes":
        raise ValueError("data.targets: 'classes' are labels; mse takes 'gaussian', 'ones' or 'teacher'")


def _check_optimizer(request: JobRequest) -> None:
    """Muon is for hidden matrices: some must be there."""
    if request.optimizer.name == "muon" and request.architecture.depth < 3:
        raise ValueError(
            "optimizer.name: 'muon' is for the matrices of hidden blocks, and depth 2 has none; use 'adamw'"
        )


def _check_rule(request: JobRequest) -> None:
    """Table 1 speaks of ReLU MLPs under gradient descent; µP of gradient descent and of entry-wise normalized steps.

    κ, which probes refine, is part of rule ``fsc`` alone.
    """
    rule = request.rule
    if request.scaling.refine is not None and (request.kind, rule) != ("recommend", "fsc"):
        raise ValueError(
            f"scaling.refine: kind 'recommend' with rule 'fsc' takes it, not {request.kind!r} with {rule!r}"
        )
    if request.scaling.base_width is not None and rule != "mup":
        raise ValueError(f"scaling.base_width: only rule 'mup' takes it, not {rule!r}")
    if rule == "mup" and request.kind == "recommend" and request.optimizer.name == "muon":
        raise ValueError("scaling.rule: 'mup' gives rates for SGD, Adam, AdamW and SignSGD, not for 'muon'")
    if rule not in ("ntk", "mf_mup"):
        return
    if not isinstance(request.architecture, Mlp):
        raise ValueError(f"scaling.rule: {rule!r} is known for family 'mlp' only, not {request.architecture.family!r}")
    if request.kind == "recommend" and request.optimizer.name != "sgd":
        raise ValueError(f"scaling.rule: {rule!r} gives rates for optimizer 'sgd' only, not {request.optimizer.name!r}")


def _check_blocks(request: JobRequest) -> None:
    """Names in ``frozen``, ``initialization`` and ``learning_rates`` must exist; some block must train."""
    names = request.architecture.block_names
    maps = {
        "frozen": request.frozen,
        "initialization": request.initialization,
        "learning_rates": request.learning_rates,
    }
    for field, given in maps.items():
        unknown = sorted(set(given or ()) - {*names, "hidden"}) if not isinstance(given, str | float | int) else []
        if unknown:
            raise ValueError(f"{field}: unknown block {unknown[0]!r}; blocks are {', '.join(_shortened(names))}")
    if request.kind == "recommend" and request.initialization is not None:
        raise ValueError("initialization: only kind 'measure' takes it")
    if request.kind == "recommend" and request.learning_rates != "balanced":
        raise ValueError("learning_rates: only kind 'measure' takes them")
    if all(is_selected(name, request.frozen) for name in names):
        raise ValueError("frozen: every block is frozen; at least one must train")
    if isinstance(rates := request.learning_rates, dict):
        missing = [name for name in names if lookup(name, rates) is None and not is_selected(name, request.frozen)]
        if missing:
            raise ValueError(f"learning_rates: no rate for block {missing[0]!r}, nor for its group")


def _check_balance(request: JobRequest) -> None:
    """Weights and granularity must speak of rates that are balanced, and the weights leave a block that trains."""
    asked = {
        "contributions": request.scaling.contributions is not None,
        "granularity": request.scaling.granularity != "block",
    }
    for field in [field for field, given in asked.items() if given]:
        if request.kind == "recommend" and request.rule != "fsc":
            raise ValueError(f"scaling.{field}: rule {request.rule!r} has rates of its own; only 'fsc' takes it")
        if request.learning_rates != "balanced":
            raise ValueError(f"scaling.{field}: needs learning_rates 'balanced', not explicit ones")
    trained = [name for name in request.architecture.block_names if not is_selected(name, request.frozen)]
    if not any(request.contributions[group_of(name)] for name in trained):
        raise ValueError("scaling.contributions: every block that trains has weight 0; one must be positive")


def _shortened(names: list[str]) -> list[str]:
    return names if len(names) <= 6 else [*names[:3], "…", *names[-2:]]


def group_of(block: str) -> str:
    """The group of a block: ``input``, ``hidden`` or ``output``."""
    return block if block in ("input", "output") else "hidden"


def is_selected(block: str, names: tuple[str, ...]) -> bool:
    """Whether ``names`` lists the block or its group."""
    return block in names or group_of(block) in names


def lookup(block: str, values: dict[str, float]) -> float | None:
    """The value for a block: its own, else its group's, else none."""
    return values.get(block, values.get(group_of(block)))
