"""What is recommended: one seed's scales and rates as numbers, and their geometric means over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from featurespeed.contract import (
    BlockRecommendation,
    GeometricStatistic,
    Granularity,
    OptimizerName,
    ParameterRecommendation,
    Recommendation,
)
from featurespeed.contract.base import Model
from featurespeed.contract.report import Scales
from featurespeed.defaults import WARMUP_FRACTION
from featurespeed_workers.balance import rate_of
from featurespeed_workers.measurement import Setting
from featurespeed_workers.passes import norm, rms_by_name
from featurespeed_workers.rules.scaling import BlockScaling


class Tensors(Model):
    """Initialization of one tensor for one seed, ``mean`` + ``std`` · noise; its rate η, δt left out; who steps it."""

    name: str
    block: str
    shape: tuple[int, ...]
    mean: float
    std: float
    default_rms: float | None = None
    rate: float
    optimizer: OptimizerName | None = None


class SeedScaling(Model):
    """One seed's recommendation; ``rates`` are η_l in the order of the blocks, δt left out."""

    blocks: tuple[str, ...]
    modules: tuple[str, ...] = ()
    rates: tuple[float, ...]
    master_lr: float
    first_rates: dict[str, float]
    relative_sensitivity: float | None
    feature_step: float | None = None
    notes: dict[str, str]
    contributions: dict[str, float] | None = None
    granularity: Granularity | None = None
    scales: Scales = "set"
    tensors: tuple[Tensors, ...]


def seed_scaling(setting: Setting, scaling: BlockScaling) -> SeedScaling:
    """The scalars of a scaling, and the optimizer of each parameter."""
    network = setting.network
    defaults = network.default_rms or rms_by_name(network.module)
    tensors = [
        Tensors(
            name=name,
            block=block.name,
            shape=tuple(p.shape),
            mean=mean,
            std=std,
            default_rms=defaults[name],
            rate=rate_of(scaling.rates, block.name, name),
            optimizer=setting.rule(name).name if p.requires_grad else None,
        )
        for block in network.blocks
        for name in block.parameters
        for p in [scaling.parameters[name]]
        for given in [scaling.stds.get(name, scaling.stds.get(block.name))]
        for mean, std in [_present(p.detach()) if scaling.kept else _mean_and_std(p.detach(), given)]
    ]
    return SeedScaling(
        blocks=tuple(b.name for b in network.blocks),
        modules=tuple(b.module for b in network.blocks),
        rates=tuple(scaling.rates[b.name] for b in network.blocks),
        master_lr=scaling.master_lr,
        first_rates=scaling.first_rates,
        relative_sensitivity=scaling.relative_sensitivity,
        feature_step=scaling.feature_step,
        notes=scaling.notes,
        contributions=scaling.contributions,
        granularity=scaling.granularity,
        scales="kept" if scaling.kept else "set",
        tensors=tuple(tensors),
    )


def _mean_and_std(p: torch.Tensor, given: float | None) -> tuple[float, float]:
    """(value, 0) for a constant tensor (zero biases, unit gains), else (0, rms): weights are drawn about zero."""
    if given is not None and p.ndim > 1:
        return 0.0, given
    first = p.flatten()[0].item()
    drawn = p.numel() == 1 and (p.ndim > 1 or first not in (0.0, 1.0))  # one number may be a draw that looks constant
    constant = bool((p == first).all()) and not drawn and first.imag == 0
    return (first.real, 0.0) if constant else (0.0, norm(p) / math.sqrt(p.numel()))


def _present(p: torch.Tensor) -> tuple[float, float]:
    """Mean and std over the entries of a tensor that stays as it is."""
    entries = p.to(torch.promote_types(p.dtype, torch.float64))  # which keeps complex numbers
    return entries.mean().item().real, float(entries.std(correction=0))


def recommendation(seeds: Sequence[SeedScaling]) -> Recommendation:
    """The recommendation over all seeds: scales and rates are geometric means, as they scatter by factors."""
    master = GeometricStatistic.of([s.master_lr for s in seeds])
    rates = [GeometricStatistic.of([s.rates[i] * s.master_lr for s in seeds]) for i in range(len(seeds[0].blocks))]
    stds = [_block_std(block, seeds) for block in seeds[0].blocks]
    taus = [s.relative_sensitivity for s in seeds if s.relative_sensitivity is not None]
    tau = GeometricStatistic.of(taus) if taus else None
    first = {name: GeometricStatistic.of([s.first_rates[name] for s in seeds]) for name in seeds[0].first_rates}
    feature_steps = [s.feature_step for s in seeds if s.feature_step is not None]
    return Recommendation(
        master_lr=master.mean,
        output_multiplier=1.0,
        relative_sensitivity=tau.mean if tau else None,
        feature_step=GeometricStatistic.of(feature_steps).mean if feature_steps else None,
        warmup_fraction=0.0 if seeds[0].scales == "kept" else WARMUP_FRACTION,
        master_lr_over_seeds=master,
        relative_sensitivity_over_seeds=tau,
        contributions=seeds[0].contributions,
        granularity=seeds[0].granularity,
        scales=seeds[0].scales,
        blocks=tuple(
            BlockRecommendation(
                index=i + 1,
                name=name,
                module=seeds[0].modules[i] if seeds[0].modules else None,
                init_std=stds[i].mean,
                init_ratio=_ratio([_matrices(name, s) for s in seeds]),
                multiplier=1.0,
                lr=rates[i].mean,
                init_std_over_seeds=stds[i],
                lr_over_seeds=rates[i],
                first_lr=first[name].mean if name in first else None,
                first_lr_over_seeds=first.get(name),
                note=next((s.notes[name] for s in seeds if name in s.notes), None),
            )
            for i, name in enumerate(seeds[0].blocks)
        ),
        parameters=tuple(
            ParameterRecommendation(
                name=t.name,
                block=t.block,
                shape=t.shape,
                init_mean=_common_mean([s.tensors[i].mean for s in seeds]),
                init_std=GeometricStatistic.of([s.tensors[i].std for s in seeds]).mean,
                init_ratio=_ratio([s.tensors[i : i + 1] for s in seeds]),
                lr=GeometricStatistic.of([s.tensors[i].rate * s.master_lr for s in seeds]).mean,
                first_lr=first[t.block].mean if t.block in first else None,
                optimizer=t.optimizer,
            )
            for i, t in enumerate(seeds[0].tensors)
        ),
    )


def _common_mean(means: Sequence[float]) -> float:
    """Of a constant tensor: gains that are scaled differ by seed, and are combined as all scales are."""
    return means[0] if len(set(means)) == 1 or min(means) <= 0 else GeometricStatistic.of(means).mean


def _block_std(block: str, seeds: Sequence[SeedScaling]) -> GeometricStatistic:
    """Root mean square over the entries of the block's matrices (of all its tensors if it has none)."""

    return GeometricStatistic.of([_rms((t.std, t) for t in _matrices(block, s)) for s in seeds])


def _matrices(block: str, scaling: SeedScaling) -> list[Tensors]:
    own = [t for t in scaling.tensors if t.block == block]
    return [t for t in own if len(t.shape) > 1] or own


def _ratio(seeds: Sequence[Sequence[Tensors]]) -> float | None:
    """Root mean square as recommended over that by default, as a geometric mean; ``None`` where the latter is 0."""
    ratios = []
    for tensors in seeds:
        default = _rms((t.default_rms or 0.0, t) for t in tensors)
        if default == 0:
            return None
        ratios.append(_rms((math.hypot(t.mean, t.std), t) for t in tensors) / default)
    return GeometricStatistic.of(ratios).mean


def _rms(sizes: Iterable[tuple[float, Tensors]]) -> float:
    """Root mean square over all entries of tensors that have each its own."""
    known = [(size, math.prod(t.shape)) for size, t in sizes]
    entries = sum(count for _, count in known)
    return math.sqrt(sum(size**2 * count for size, count in known) / entries) if entries else 0.0
