"""Properties, stability and kernels of all seeds, as a report has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from featurespeed.contract import Measurement, Statistic
from featurespeed.contract.properties import KernelCosine, LayerStability, Properties, StabilityMeasurement
from featurespeed_workers import stability
from featurespeed_workers.kernel import KernelCos, Kernels
from featurespeed_workers.properties import SeedState, verdicts


def properties_of(before: Sequence[SeedState | None], after: Sequence[SeedState | None]) -> Properties | None:
    """Verdicts on the states that all seeds have; ``None`` if there is none."""
    judged = [verdicts(known) if (known := _complete(states)) else None for states in (before, after)]
    return Properties(before=judged[0], after=judged[1]) if any(judged) else None


def stability_of(states: Sequence[SeedState | None]) -> StabilityMeasurement | None:
    """The stability of one state, if all seeds have it."""
    seeds = [s.stability for s in _complete(states) if s.stability is not None]
    if not seeds or len(seeds) < len(states):
        return None
    residuals = [s.backward_residual for s in seeds if s.backward_residual is not None]
    return StabilityMeasurement(
        layers=tuple(_layer(i, [s.layers[i] for s in seeds]) for i in range(len(seeds[0].layers))),
        backward_formula_residual=max(residuals, default=None),
    )


def _complete(states: Sequence[SeedState | None]) -> list[SeedState]:
    known = [s for s in states if s is not None]
    return known if len(known) == len(states) else []


def _layer(index: int, seeds: Sequence[stability.LayerStability]) -> LayerStability:
    def over(quantity: Callable[[stability.LayerStability], float | None]) -> Statistic:
        return Statistic.of([quantity(s) for s in seeds])

    return LayerStability(
        index=index + 1,
        name=seeds[0].name,
        relative_feature_speed=over(lambda s: s.relative_feature_speed),
        relative_backward_speed=over(lambda s: s.relative_backward_speed),
        relative_gradient_speed=over(lambda s: s.relative_gradient_speed),
        backward_angle=over(lambda s: s.backward_angle),
    )


def with_kernels(measured: Measurement, seeds: Sequence[Kernels | None]) -> Measurement:
    """The measurement with M_1/√M_2 in its layers, if all seeds have probed it."""
    known = [kernels for kernels in seeds if kernels is not None]
    if not known or len(known) < len(seeds):
        return measured
    layers = (
        layer.model_copy(update={"kernel_cos": _kernel_cosine([kernels[i] for kernels in known])})
        for i, layer in enumerate(measured.layers)
    )
    return measured.model_copy(update={"layers": tuple(layers)})


def _kernel_cosine(seeds: Sequence[KernelCos | None]) -> KernelCosine | None:
    known = [k for k in seeds if k is not None]
    if not known:
        return None
    return KernelCosine(
        mean=math.fsum(k.cos for k in known) / len(known),
        standard_error=math.hypot(*(k.standard_error for k in known)) / len(known),
        values=tuple(None if k is None else k.cos for k in seeds),
    )
