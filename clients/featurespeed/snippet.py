"""A report as a few lines of PyTorch that need nothing of this package."""

from __future__ import annotations

from collections.abc import Iterator

from featurespeed.contract.optimizer import AdamSettings, Muon, Optimizer
from featurespeed.contract.report import ParameterRecommendation, Report
from featurespeed.contract.request import JobRequest

_CLASSES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "muon": "Muon"}

_HEAD = '''"""Initialization and learning rates by featurespeed {version}; made for {kind}."""

import torch

# name: (mean, std, learning rate); learning rates are peak values
PARAMETERS = {{
{rows}
}}


@torch.no_grad()
def initialize(model):
    for name, parameter in model.named_parameters():
        mean, std, _ = PARAMETERS[name]
        parameter.normal_(mean, std) if std else parameter.fill_(mean)


def param_groups(model, names):
    return [{{"params": [model.get_parameter(name)], "lr": PARAMETERS[name][2]}} for name in names]


def schedule(optimizer, steps):
    """Linear warm-up over {warmup:.0%} of the steps, then a cosine to 0."""
    warmup = max(1, round({warmup:g} * steps))
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup))
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])


def optimizers(model):
    return [
{optimizers}
    ]
'''


def snippet(report: Report, request: JobRequest) -> str | None:
    """The lines: functions ``initialize(model)``, ``optimizers(model)`` and ``schedule(optimizer, steps)``.

    Weights are drawn anew from normal distributions, where :meth:`Report.apply` rescales those that are there.
    ``None`` for a report that recommends nothing, and where a first step has rates of its own or the scales stay, which
    take more than this.
    """
    advice = report.recommendation
    if advice is None or any(b.first_lr is not None for b in advice.blocks) or request.optimizer.name == "signsgd":
        return None
    rows = "\n".join(f"    {p.name!r}: ({p.init_mean:.6g}, {p.init_std:.6g}, {p.lr:.6g})," for p in advice.parameters)
    return _HEAD.format(
        version=report.provenance.featurespeed,
        kind=f"family {request.architecture.family}",
        rows=rows,
        warmup=advice.warmup_fraction,
        optimizers="\n".join(_optimizers(request.optimizer, advice.parameters)),
    )


def _optimizers(optimizer: Optimizer, parameters: tuple[ParameterRecommendation, ...]) -> Iterator[str]:
    for name in sorted({p.optimizer for p in parameters if p.optimizer is not None}, reverse=True):
        own = [p.name for p in parameters if p.optimizer == name]
        chosen = "PARAMETERS" if len(own) == len(parameters) else f"[{', '.join(map(repr, own))}]"
        arguments = ", ".join(f"{key}={value!r}" for key, value in _arguments(optimizer, name).items())
        yield f"        torch.optim.{_CLASSES[name]}(param_groups(model, {chosen}), {arguments}),"


def _arguments(optimizer: Optimizer, name: str) -> dict[str, object]:
    if isinstance(optimizer, Muon) and name == "adamw":
        return _settings(optimizer.adamw)
    return _settings(optimizer)


def _settings(settings: Optimizer | AdamSettings) -> dict[str, object]:
    return settings.model_dump(exclude={"name", "adamw"})
