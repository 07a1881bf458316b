"""Reports as tables for people."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurespeed.cli.verdicts import reasons, verdict_table
from featurespeed.contract.evidence import LossCurves
from featurespeed.contract.refinement import Refinement
from featurespeed.contract.report import (
    BlockRecommendation,
    GeometricStatistic,
    LayerMeasurement,
    Measurement,
    Recommendation,
    Report,
    Statistic,
)
from featurespeed.wording import number, share, spread

PLAIN_WIDTH = 200
"""Columns of the output where there is no terminal: nothing is cut."""


def rendered(report: Report) -> str:
    """A report as text for standard output, with colours if that is a terminal."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=PLAIN_WIDTH)
    detail = Detail.fitting(console.width)
    first = report.measurements[0] if report.measurements else None
    with console.capture() as text:
        if report.recommendation is not None:
            console.print(recommendation_table(report.recommendation, first, detail))
            if report.recommendation.refinement is not None:
                console.print(probes_table(report.recommendation.refinement))
        elif first is not None:
            console.print(measurement_table(first))
        if len(report.measurements) > 1:
            console.print(training_table(report.measurements))
        if report.evidence is not None and report.evidence.loss_curves is not None:
            console.print(losses_table(report.evidence.loss_curves))
        if report.properties is not None:
            console.print(verdict_table(report.properties))
        for line in footer(report):
            console.print(Text(line), soft_wrap=True)
    lines = [line.rstrip(" ") for line in text.get().splitlines()]
    return "\n".join(lines[next((i for i, line in enumerate(lines) if line), 0) :]) + "\n"


@dataclass(frozen=True)
class Detail:
    """What of a recommendation there is room for."""

    spreads: bool
    """Spreads over seeds, ratios to the default, and the rms of features."""
    bars: bool
    """Bars beside angles and parts of the decay."""

    @classmethod
    def fitting(cls, width: int) -> Self:
        """For so many columns."""
        return cls(spreads=width >= 150, bars=width >= 100)


def recommendation_table(
    recommendation: Recommendation, measured: Measurement | None, detail: Detail = Detail(spreads=True, bars=True)
) -> Table:
    """One row a block: what to set, how much it varies over seeds, and what was measured there."""
    layers = {layer.index: layer for layer in measured.layers} if measured else {}
    total = sum(layer.contribution.mean or 0.0 for layer in layers.values())
    largest = max((layer.contribution.mean or 0.0 for layer in layers.values()), default=0.0)
    shown: list[tuple[str, Callable[[BlockRecommendation, LayerMeasurement | None], str | Text], bool]] = [
        ("block", lambda b, _: Text(b.name), True),
        ("init std", lambda b, _: number(b.init_std), True),
        ("± seeds", lambda b, _: factor(b.init_std_over_seeds), detail.spreads),
        ("÷ default", lambda b, _: number(b.init_ratio), detail.spreads),
        ("lr", lambda b, _: number(b.lr) if b.lr else "0 (does not train)", True),
        ("± seeds", lambda b, _: factor(b.lr_over_seeds) if b.lr else "", detail.spreads),
        ("angle (rad)", lambda _, x: spread(x.angle) if x else "", True),
        ("0 … π/2", lambda _, x: bar(x.angle.mean, math.pi / 2) if x else "", detail.bars),
        ("feature rms", lambda _, x: number(x.feature_rms.mean) if x else "", detail.spreads),
        ("share of decay", lambda _, x: share(x.contribution.mean, total) if x else "", True),
        ("", lambda _, x: bar(x.contribution.mean, largest) if x else "", detail.bars),
        ("note", lambda b, _: Text(b.note or ""), any(b.note for b in recommendation.blocks)),
    ]
    columns = [(title, value) for title, value, room in shown if room]
    table = _table(*(title for title, _ in columns))
    for title, column in zip((title for title, _ in columns), table.columns, strict=True):
        if title in ("0 … π/2", ""):
            column.justify = "left"
    for block in recommendation.blocks:
        table.add_row(*(value(block, layers.get(block.index)) for _, value in columns))
    return table


BAR_WIDTH = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(value: float | None, full: float) -> str:
    """A bar of up to BAR_WIDTH characters, to an eighth of one."""
    if value is None or full <= 0:
        return ""
    eighths = round(8 * BAR_WIDTH * min(1.0, max(0.0, value / full)))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


QUANTITIES = (
    ("angle (rad)", "angle"),
    ("cos", "cos"),
    ("feature rms", "feature_rms"),
    ("feature speed", "feature_speed"),
    ("backward rms", "backward_rms"),
    ("sensitivity", "sensitivity"),
    ("contribution", "contribution"),
    ("gradient norm", "gradient_norm"),
)


def measurement_table(measured: Measurement) -> Table:
    """One row a layer: mean over seeds; of the angle, the standard deviation too, of M_1/√M_2 the standard error."""
    kernels = any(layer.kernel_cos is not None for layer in measured.layers)
    table = _table("layer", *(title for title, _ in QUANTITIES), *(["kernel cos"] if kernels else []))
    for layer in measured.layers:
        means = [number(value) for value in _means(layer)]
        table.add_row(Text(layer.name), spread(layer.angle), *means, *([_kernel(layer)] if kernels else []))
    return table


def _kernel(layer: LayerMeasurement) -> str:
    kernel = layer.kernel_cos
    return "–" if kernel is None else f"{kernel.mean:.3f} ± {kernel.standard_error:.3f}"


def _means(layer: LayerMeasurement) -> Iterator[float | None]:
    for _, field in QUANTITIES[1:]:
        statistic: Statistic = getattr(layer, field)
        yield statistic.mean


def training_table(measurements: tuple[Measurement, ...]) -> Table:
    """One row a measured step of training; the angle is that of the last hidden layer."""
    drift = ("rate drift", "between blocks")
    table = _table("step", "loss", "± seeds", "loss decay", "last hidden angle (rad)", *drift, "formula residual")
    for measured in measurements:
        table.add_row(
            str(measured.step),
            number(measured.loss),
            number(measured.loss_over_seeds.sd),
            number(measured.loss_decay),
            spread(measured.layers[-2].angle) if len(measured.layers) > 1 else "",
            *rate_drift(measured),
            f"{measured.formula_residual:.1e}",
        )
    return table


def rate_drift(measured: Measurement) -> tuple[str, str]:
    """Drift of the balanced rates: mean over blocks, and largest over smallest block; means are geometric."""
    drifts = [s.values for layer in measured.layers if (s := layer.balanced_rate_drift) is not None]
    known = [[math.log(value) for value in values if value is not None] for values in drifts]
    logs = [statistics.fmean(values) for values in known if values]
    if not logs:
        return "–", "–"
    return f"×{math.exp(statistics.fmean(logs)):.3g}", f"×÷{math.exp(max(logs) - min(logs)):.3g}"


def probes_table(refinement: Refinement) -> Table:
    """One row a factor: how its probes went; the score chooses, the mean of the two log-losses, and is to be low."""
    table = _table("probe κ", "factor", "score", "± seeds", "log-loss: whole", "last fifth", "steps", "note")
    for probe in refinement.probes:
        whole, late = Statistic.of(probe.mean_log_loss), Statistic.of(probe.late_log_loss)
        both = zip(whole.values, late.values, strict=True)
        scores = Statistic.of([(a + b) / 2 for a, b in both if a is not None and b is not None])
        diverged = f"diverged ({sum(probe.diverged)} of {len(probe.diverged)} seeds)" if any(probe.diverged) else ""
        table.add_row(
            number(probe.feature_step),
            number(probe.factor),
            number(probe.score),
            number(scores.sd) if len(scores.values) > 1 else "–",
            number(whole.mean),
            number(late.mean),
            str(sum(probe.steps)),
            "lowest" if probe.chosen else diverged,
        )
    return table


def losses_table(curves: LossCurves) -> Table:
    """Two rows: training under the recommendation, and under PyTorch's defaults."""
    table = _table("training", "mean loss", "final loss", "± seeds")
    rows = (
        ("recommended", curves.recommended, curves.recommended_by_seed),
        ("PyTorch default", curves.pytorch_default, curves.pytorch_default_by_seed),
    )
    for name, curve, by_seed in rows:
        whole = [loss for loss in curve if loss is not None]
        finished = len(whole) == len(curve)
        final = Statistic.of([own[-1] for own in by_seed])
        mean = number(statistics.fmean(whole)) if finished else f"diverged at step {curves.steps[len(whole)]}"
        table.add_row(name, mean, number(curve[-1]), number(final.sd) if finished and len(by_seed) > 1 else "–")
    return table


def footer(report: Report) -> Iterator[str]:
    """What concerns the whole network, one line each."""
    if (found := report.branch_scale) is not None:
        angle = f"angle {found.angle:.3f} reached, {found.target_angle:.4g} asked"
        yield f"branch scale     {found.beta:g}   (β; {angle})"
    if (advice := report.recommendation) is not None:
        yield f"master LR        {number(advice.master_lr)}   (δt, already in every lr)"
        if advice.relative_sensitivity is not None:
            how = "reached" if advice.scales == "set" else "measured"
            yield f"τ, κ             {number(advice.relative_sensitivity)} {how}, {_feature_step(advice)}"
        if advice.scales == "kept":
            yield "scales           kept, those of the checkpoint   (learning rates alone are to be set)"
        if advice.granularity == "tensor":
            yield "granularity      tensor   (a block's lr is a mean of its tensors'; these are in the JSON report)"
        if advice.granularity == "group":
            yield "granularity      group   (input, hidden and output have one init std and one lr each)"
        if advice.contributions is not None and set(advice.contributions.values()) != {1.0}:
            weights = ", ".join(f"{group} {number(weight)}" for group, weight in advice.contributions.items())
            yield f"contributions    {weights}   (weight of each block in the loss decay)"
        if len(optimizers := Counter(p.optimizer for p in advice.parameters if p.optimizer)) > 1:
            tensors = ", ".join(f"{name} for {count} tensors" for name, count in optimizers.items())
            yield f"optimizers       {tensors}   (which is for which: recommendation.parameters in the JSON report)"
        if advice.warmup_fraction:
            yield f"warm-up          {advice.warmup_fraction:.0%} of the steps, linear from 0"
        for block in advice.blocks:
            if block.first_lr is not None:
                yield f"first step       lr {number(block.first_lr)} for {block.name}, without warm-up"
        if advice.output_multiplier != 1:
            yield f"output factor    {number(advice.output_multiplier)}"
    if report.measurements:
        first = report.measurements[0]
        residual = max(measured.formula_residual for measured in report.measurements)
        yield f"loss at start    {number(first.loss)}"
        yield f"formula residual {residual:.1e}"
        if first.method != "exact":
            error = max((m.cos_error for m in report.measurements if m.cos_error is not None), default=None)
            added = "" if error is None else f", which adds about {error:.0e} to cos"
            yield f"method           {first.method}{added}"
    made = report.provenance
    seeds = ", ".join(map(str, made.seeds))
    yield f"made with        seeds {seeds}; {made.dtype} on {made.device}; {made.wall_seconds:.1f} s"
    if report.properties is not None:
        for what, reason in reasons(report.properties):
            yield f"{what:16} {reason}"
    for warning in report.warnings:
        yield f"warning          {warning}"


def _feature_step(advice: Recommendation) -> str:
    if (found := advice.refinement) is None:
        return f"{number(advice.feature_step)} taken"
    cost = f"{len(found.probes)} factors, {found.total_steps} steps in all"
    return f"{number(advice.feature_step)} by probes ({cost}); {number(found.asked_feature_step)} without"


def factor(statistic: GeometricStatistic) -> str:
    """A geometric standard deviation."""
    return f"×÷{statistic.factor_sd:.3g}" if len(statistic.values) > 1 else "–"  # one seed has no spread


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="left" if title == "note" else "right", no_wrap=title != "note")
    return table
