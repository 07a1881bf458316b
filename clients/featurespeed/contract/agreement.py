"""Whether the parts of a request agree with one another: every check names the field that it blames."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from featurespeed.contract.architecture import (
    Architecture,
    HuggingFace,
    Mlp,
    ResNet,
    Signature,
    TargetAngle,
    Transformer,
)
from featurespeed.contract.blocks import group_of, is_selected, lookup
from featurespeed.contract.data import Digits, Gaussian, Sphere, Tokens
from featurespeed.defaults import RELATIVE_SENSITIVITY

if TYPE_CHECKING:
    from featurespeed.contract.request import JobRequest


def check_agreement(request: JobRequest) -> None:
    """Raise ValueError, beginning with the path of the field, for the first fault."""
    for check in _CHECKS:
        check(request)


def _check_data(request: JobRequest) -> None:
    """The data must have the shape that the architecture takes."""
    architecture, data = request.architecture, request.data
    takes = architecture.signature
    if isinstance(data, Tokens) and takes.vocab_size is None:
        raise ValueError(f"data.kind: 'tokens' needs a network of tokens (vocab_size), not {_described(architecture)}")
    if takes.vocab_size is not None and isinstance(data, Gaussian | Sphere | Digits):
        raise ValueError(
            f"data.kind: {data.kind!r} has no tokens; {_described(architecture)} takes 'tokens' or 'dataset'"
        )
    if isinstance(data, Tokens) and takes.per_position and takes.outputs < (classes := takes.vocab_size or 0):
        field = f"architecture.{takes.outputs_field}"
        raise ValueError(f"{field}: the next token is one of {classes} classes, and the output has {takes.outputs}")
    if isinstance(data, Digits):
        _check_digits(takes)
    if architecture.couples_examples and data.batch_size < 2:
        raise ValueError(f"data.batch_size: batch norm needs at least 2 examples, not {data.batch_size}")


def _check_digits(takes: Signature) -> None:
    """An image of 8 × 8, or its 64 coordinates."""
    field = f"architecture.{takes.inputs_field}"
    if len(takes.inputs) < 3 and math.prod(takes.inputs) != 64:
        raise ValueError(f"{field}: digits have 64 coordinates, not {math.prod(takes.inputs)}")
    if len(takes.inputs) == 3 and takes.inputs != (1, 8, 8):
        channels, height, width = takes.inputs
        raise ValueError(f"{field}: digits are 8 × 8 × 1, not {height} × {width} × {channels}")
    if takes.outputs < 10:
        raise ValueError(f"architecture.{takes.outputs_field}: digits have 10 classes, not {takes.outputs}")


def _described(architecture: Architecture) -> str:
    if isinstance(architecture, Transformer):
        return "a transformer with image" if architecture.image is not None else "a transformer with vocab_size"
    if isinstance(architecture, HuggingFace):
        return f"model_type {architecture.model_type!r}"
    return f"family {architecture.family!r}"


def _check_targets(request: JobRequest) -> None:
    """The targets must be what the loss compares with."""
    data, loss, gives = request.data, request.loss, request.architecture.signature
    if loss == "cross_entropy" and gives.outputs == 1:
        raise ValueError(f"architecture.{gives.outputs_field}: cross_entropy needs at least 2 classes, not 1")
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
    if request.optimizer.name != "muon":
        return
    if not (blocks := request.architecture.matrix_blocks):
        why = "depth 2 has none" if request.architecture.depth < 3 else "these have convolutions or none"
        raise ValueError(f"optimizer.name: 'muon' is for the matrices of hidden blocks, and {why}; use 'adamw'")
    if set(blocks).isdisjoint(request.trained_blocks):
        raise ValueError("optimizer.name: 'muon' is for the matrices of hidden blocks, and all are frozen; use 'adamw'")


def _check_rule(request: JobRequest) -> None:
    """Table 1 speaks of ReLU MLPs under gradient descent; µP of gradient descent and of entry-wise normalized steps.

    κ, which probes refine, is part of rule ``fsc`` alone.
    """
    rule = request.rule
    if request.scaling.refine is not None and (request.kind, rule) != ("recommend", "fsc"):
        raise ValueError(
            f"scaling.refine: kind 'recommend' with rule 'fsc' takes it, not {request.kind!r} with {rule!r}"
        )
    if request.scaling.feature_step is not None and request.kind == "recommend" and rule != "fsc":
        raise ValueError(f"scaling.feature_step: rule {rule!r} has rates of its own; only 'fsc' takes it")
    if request.scaling.base_width is not None and rule != "mup":
        raise ValueError(f"scaling.base_width: only rule 'mup' takes it, not {rule!r}")
    if rule == "mup" and not isinstance(request.architecture, Mlp | ResNet | Transformer):
        raise ValueError(f"scaling.rule: 'mup' is not known for family {request.architecture.family!r}")
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
    if not request.trained_blocks:
        raise ValueError("frozen: every block is frozen; at least one must train")
    if isinstance(rates := request.learning_rates, dict):
        missing = [name for name in request.trained_blocks if lookup(name, rates) is None]
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
    weights = request.contributions
    if not any(weights[group] for group in {group_of(name) for name in request.trained_blocks}):
        raise ValueError("scaling.contributions: every block that trains has weight 0; one must be positive")


def _shortened(names: list[str]) -> list[str]:
    return names if len(names) <= 6 else [*names[:3], "…", *names[-2:]]


def _check_zero_output(request: JobRequest) -> None:
    """An output that starts at zero needs a first step, and gives every other block a zero gradient before it."""
    if not request.scaling.zero_output:
        return
    if request.kind != "recommend" or request.rule != "fsc":
        raise ValueError("scaling.zero_output: only kind 'recommend' under rule 'fsc' takes it")
    if is_selected("output", request.frozen) or request.contributions["output"] == 0:
        raise ValueError("scaling.zero_output: the output block must train, and have a weight in contributions")
    if isinstance(request.architecture, ResNet) and isinstance(request.architecture.branch_scale, TargetAngle):
        raise ValueError("scaling.zero_output: there is no angle to aim at (branch_scale.target_angle) at zero output")


def _check_probes(request: JobRequest) -> None:
    """ḟ = −K b holds for gradient descent alone."""
    probes, optimizer = request.measurement.kernel_probes, request.optimizer
    if probes and optimizer.name != "sgd":
        raise ValueError(f"measurement.kernel_probes: needs optimizer 'sgd', not {optimizer.name!r}")
    if probes and optimizer.weight_decay:
        decay = optimizer.weight_decay
        raise ValueError(f"measurement.kernel_probes: needs optimizer.weight_decay 0, not {decay}")
    if probes and request.scaling.zero_output:
        raise ValueError("measurement.kernel_probes: at zero output (scaling.zero_output) no angle stands beside them")


def _check_checkpoint(request: JobRequest) -> None:
    """With a checkpoint scales stay, τ is what is measured, and nothing is trained: what asks otherwise is refused."""
    if request.checkpoint is None:
        return
    if request.kind != "recommend":
        raise ValueError(f"checkpoint: only kind 'recommend' takes it, not {request.kind!r}")
    if request.rule != "fsc":
        raise ValueError(f"scaling.rule: does not go with checkpoint, which keeps all scales, not {request.rule!r}")
    scaling, settings, architecture = request.scaling, request.measurement, request.architecture
    asked = {
        "scaling.relative_sensitivity": scaling.relative_sensitivity != RELATIVE_SENSITIVITY,
        "scaling.refine": scaling.refine is not None,
        "scaling.zero_output": scaling.zero_output,
        "architecture.branch_scale.target_angle": isinstance(getattr(architecture, "branch_scale", None), TargetAngle),
        "measurement.steps": settings.steps > 0,
        "measurement.kernel_probes": settings.kernel_probes > 0,
    }
    for field in [field for field, given in asked.items() if given]:
        raise ValueError(f"{field}: does not go with checkpoint, which keeps all scales and measures one state")


_CHECKS = (
    _check_data,
    _check_targets,
    _check_optimizer,
    _check_rule,
    _check_blocks,
    _check_balance,
    _check_zero_output,
    _check_probes,
    _check_checkpoint,
)
