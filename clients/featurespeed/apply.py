"""A report put to use: the initialization and the learning rates of a torch model."""

from __future__ import annotations

from typing import Any

import torch

from featurespeed.contract.optimizer import OptimizerName
from featurespeed.contract.report import ParameterRecommendation, Recommendation, Report
from featurespeed.errors import ParameterMismatch


def apply(report: Report, model: torch.nn.Module) -> None:
    """Bring every parameter of ``model`` to its recommended scale, in place.

    A tensor keeps the distribution that it has and is rescaled so that its root mean square about ``init_mean`` is
    ``init_std``; one that is ``init_mean`` everywhere is drawn anew, from a normal distribution, by torch's global
    generator.
    With ``init_std`` 0 it is filled with ``init_mean`` (biases, gains of norm layers). Applying twice is applying once.

    Raises ParameterMismatch, and changes nothing, unless names and shapes are those of the report and values finite,
    and for weights that are tied in the model while the report tells them apart; ValueError for a report that keeps
    the scales of a checkpoint.
    """
    recommendation = _recommendation(report)
    if recommendation.scales == "kept":
        raise ValueError("the report keeps the scales of its checkpoint: there is nothing to apply but param_groups")
    pairs = _matched(recommendation, model)
    faults = [f"{advice.name}: has values that are not finite" for advice, p in pairs if not _can_be_set(p, advice)]
    if faults:
        raise ParameterMismatch(faults)
    with torch.no_grad():
        for advice, parameter in pairs:
            _set(parameter, advice)


def param_groups(
    report: Report, model: torch.nn.Module, *, optimizer: OptimizerName | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for the torch optimizer of the request, one a block: ``params``, ``lr`` and ``name``.

    A report for ``muon`` is one for two optimizers. Name the one whose groups are wanted: ``optimizer="muon"`` gives
    the matrices of hidden blocks, for ``torch.optim.Muon``; ``optimizer="adamw"`` all other parameters, for
    ``torch.optim.AdamW``. A block may have parameters in both, at one rate.

    Under granularity ``tensor`` and rule ``mup`` a block has a group for each rate, all of the block's name.

    Blocks keep the report's order; those that the report freezes are there with ``lr`` 0 unless an optimizer is named.
    Left out are parameters with ``requires_grad`` False. Tied weights are there once. Momentum, betas and weight decay
    are the optimizer's own arguments, and should be those of the request.

    An output block that starts at zero has ``first_lr`` too: the learning rate to set in its group for the first step,
    without warm-up; from the second step on it is ``lr`` with its schedule, as for all groups.

    Raises ParameterMismatch unless names and shapes are those of the report, and for weights that are tied in the
    model while the report tells them apart; ValueError for an optimizer that the report is not for, and if it is for
    two and none is named.
    """
    recommendation = _recommendation(report)
    pairs = _matched(recommendation, model)
    _check_optimizer(recommendation, optimizer)
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for advice, parameter in pairs:
        if parameter.requires_grad and optimizer in (None, advice.optimizer):
            empty = {"params": [], "lr": advice.lr, "name": advice.block}
            if advice.first_lr is not None:
                empty["first_lr"] = advice.first_lr
            groups.setdefault((advice.block, advice.lr), empty)["params"].append(parameter)
    return list(groups.values())


def _check_optimizer(recommendation: Recommendation, optimizer: str | None) -> None:
    known = sorted({p.optimizer for p in recommendation.parameters if p.optimizer is not None}, reverse=True)
    if optimizer is None and len(known) > 1:
        each = " and ".join(f"param_groups(model, optimizer={name!r})" for name in known)
        raise ValueError(f"optimizer: the report is for {' and '.join(known)}, which take groups of their own: {each}")
    if optimizer is not None and optimizer not in known:
        raise ValueError(f"optimizer: {optimizer!r} has no parameters in this report; it is for {', '.join(known)}")


def _recommendation(report: Report) -> Recommendation:
    if report.recommendation is None:
        raise ValueError(f"a report of kind {report.kind!r} recommends nothing; ask for kind 'recommend'")
    return report.recommendation


def _matched(
    recommendation: Recommendation, model: torch.nn.Module
) -> list[tuple[ParameterRecommendation, torch.nn.Parameter]]:
    """Every parameter of the model once, with what the report says of it; ParameterMismatch names all faults."""
    advice = {_uncompiled(p.name): p for p in recommendation.parameters}
    tied = model.named_parameters(remove_duplicate=False)  # tied weights under all their names
    named = {_uncompiled(name): p for name, p in tied}
    known = {id(named[name]) for name in advice if name in named}
    faults = [f"{name}: not in the model" for name in advice if name not in named]
    faults += [f"{name}: not in the report" for name, p in model.named_parameters() if id(p) not in known]
    faults += [
        f"{name}: shape {tuple(named[name].shape)} in the model, {p.shape} in the report"
        for name, p in advice.items()
        if name in named and tuple(named[name].shape) != p.shape
    ]
    if faults:
        raise ParameterMismatch(faults)
    pairs: dict[int, tuple[ParameterRecommendation, torch.nn.Parameter]] = {}
    for name, p in advice.items():
        first, _ = pairs.setdefault(id(named[name]), (p, named[name]))
        if first.model_copy(update={"name": p.name}) != p:
            faults.append(f"{name}: tied to {first.name} in the model, not in the report: untie it")
    if faults:
        raise ParameterMismatch(faults)
    return list(pairs.values())


def _uncompiled(name: str) -> str:
    """The name without what ``torch.compile`` puts before it: a report serves a model before and after."""
    return name.replace("_orig_mod.", "")


def _can_be_set(parameter: torch.nn.Parameter, advice: ParameterRecommendation) -> bool:
    """Whether the values are finite, or of no consequence."""
    return advice.init_std == 0 or bool(torch.isfinite(parameter).all())


def _set(parameter: torch.nn.Parameter, advice: ParameterRecommendation) -> None:
    if advice.init_std == 0:
        parameter.fill_(advice.init_mean)
        return
    exact = parameter.to(torch.promote_types(parameter.dtype, torch.float32))  # bfloat16 has 8 bits: compute in 24
    noise = exact - advice.init_mean
    largest = noise.abs().max() if noise.numel() else noise.new_zeros(())
    if largest == 0:
        parameter.normal_(advice.init_mean, advice.init_std)
        return
    noise = noise / largest  # so that no square over- or underflows
    parameter.copy_(advice.init_mean + noise * (advice.init_std / noise.abs().square().mean().sqrt()))
