"""Reports as tables for people."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featurespeed.cli.verdicts import reasons, verdict_table
from featurespeed.contract.evidence import LossCurves
from featurespeed.contract.refinement import Refinement
from featurespeed.contract.report import (
    GeometricStatistic,
    LayerMeasurement,
    Measurement,
    Recommendation,
    Report,
    Statistic,
)

PLAIN_WIDTH = 200
"""Columns of the output where there is no terminal: nothing is cut."""


def rendered(report: Report) -> str:
    """A report as text for standard output, with colours if that is a terminal."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=PLAIN_WIDTH)
    first = report.measurements[0] if report.measurements else None
    with console.capture() as text:
        if report.recommendation is not None:
            console.print(recommendation_table(report.recommendation, first))
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


def recommendation_table(recommendation: Recommendation, measured: Measurement | None) -> Table:
    """One row a block: what to set, how much it varies over seeds, and what was measured there."""
    table = _table(
        "block",
        "init std",
        "± seeds",
        "÷ default",
        "lr",
        "± seeds",
        "angle (rad)",
        "feature rms",
        "share of decay",
        "note",
    )
    layers = {layer.index: layer for layer in measured.layers} if measured else {}
    total = sum(layer.contribution.mean or 0.0 for layer in layers.values())
    for block in recommendation.blocks:
        layer = layers.get(block.index)
        table.add_row(
            Text(block.name),
            number(block.init_std),
            factor(block.init_std_over_seeds),
            number(block.init_ratio),
            number(block.lr) if block.lr else "0 (does not train)",
            factor(block.lr_over_seeds) if block.lr else "",
            spread(layer.angle) if layer else "",
            number(layer.feature_rms.mean) if layer else "",
            share(layer.contribution.mean, total) if layer else "",
            Text(block.note or ""),
        )
    return table


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


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is undefined."""
    return "–" if value is None else f"{value:.4g}"


def factor(statistic: GeometricStatistic) -> str:
    """A geometric standard deviation."""
    return f"×÷{statistic.factor_sd:.3g}" if len(statistic.values) > 1 else "–"  # one seed has no spread


def spread(statistic: Statistic) -> str:
    """Mean and, over more than one seed, standard deviation."""
    if statistic.mean is None or statistic.sd is None:
        return "–"
    return f"{statistic.mean:.3f} ± {statistic.sd:.3f}" if len(statistic.values) > 1 else f"{statistic.mean:.3f}"


def share(part: float | None, total: float) -> str:
    """A part in per cent."""
    return "–" if part is None or total == 0 else f"{part / total:.1%}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="left" if title == "note" else "right", no_wrap=title != "note")
    return table
