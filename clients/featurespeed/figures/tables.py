"""A report's tables as HTML: the blocks, the verdicts with their reasons, and what concerns the whole network."""

from __future__ import annotations

import html
from collections.abc import Sequence

from featurespeed.contract.properties import MEANINGS, Property, StateProperties
from featurespeed.contract.report import LayerMeasurement, Report
from featurespeed.contract.statistic import GeometricStatistic, Statistic

MOST_ROWS = 600
"""Blocks in a table; of more, the middle ones are left out."""


def blocks_html(report: Report) -> str:
    """What to set for every block, and what was measured there."""
    layers = {layer.index: layer for layer in report.measurements[0].layers} if report.measurements else {}
    total = sum(layer.contribution.mean or 0.0 for layer in layers.values())
    if report.recommendation is None:
        rows = [[layer.name, *_measured(layer, total)] for layer in layers.values()]
        return _table("Measured, block by block", ["block", *_MEASURED], rows)
    titles = ["block", "module", "init std", "÷ default", "learning rate", *_MEASURED, "note"]
    rows = [
        [
            b.name,
            "" if b.module in (None, b.name) else b.module or "",
            _geometric(b.init_std_over_seeds),
            _number(b.init_ratio),
            _geometric(b.lr_over_seeds) if b.lr else "0 (does not train)",
            *(_measured(layers[b.index], total) if b.index in layers else [""] * len(_MEASURED)),
            b.note or "",
        ]
        for b in report.recommendation.blocks
    ]
    return _table("Recommended, block by block", titles, rows)


_MEASURED = ("angle (rad)", "feature rms", "part of decay")


def _measured(layer: LayerMeasurement, total: float) -> list[str]:
    part = layer.contribution.mean
    share = "–" if part is None or total == 0 else f"{part / total:.1%}"
    return [_statistic(layer.angle), _number(layer.feature_rms.mean), share]


def verdicts_html(report: Report) -> str:
    """Every property: its range, value and verdict before and after, and why it fails."""
    if report.properties is None:
        return ""
    states = {"before": report.properties.before, "after": report.properties.after}
    known = {when: state for when, state in states.items() if state is not None}
    titles = ["property", "worst block’s", "range", *(known if len(known) > 1 else ["value"]), "reason"]
    rows = [[name, meaning, *_verdicts(name, list(known.items()))] for name, meaning in MEANINGS.items()]
    return _table("Properties of the scaling", titles, rows, marked=True)


def _verdicts(name: str, states: Sequence[tuple[str, StateProperties]]) -> list[str]:
    found: list[tuple[str, Property]] = [(when, getattr(state, name)) for when, state in states]
    low, high = found[0][1].range
    reasons = [
        f"{when}: {p.reason}" if len(found) > 1 else str(p.reason) for when, p in found if p.holds is False and p.reason
    ]
    return [
        f"≤ {high:.3g}" if low == 0 else f"{low:.3g} to {high:.3g}",
        *(_verdict(p) for _, p in found),
        "; ".join(reasons),
    ]


def _verdict(found: Property) -> str:
    if found.value is None:
        return "–"
    return f"{found.value:.3g} {'✓ holds' if found.holds else '✗ fails'}"


def facts_html(report: Report) -> str:
    """The constants behind the recommendation, and what is needed to get the same numbers again."""
    facts: dict[str, str] = {}
    if (advice := report.recommendation) is not None:
        facts["master learning rate δt"] = f"{_number(advice.master_lr)} (already in every rate)"
        if advice.relative_sensitivity is not None:
            facts["τ reached, κ taken"] = f"{_number(advice.relative_sensitivity)}, {_number(advice.feature_step)}"
        facts["warm-up"] = f"{advice.warmup_fraction:.0%} of the steps"
    if report.measurements:
        first = report.measurements[0]
        facts["loss at the start"] = _number(first.loss)
        facts["formula residual"] = f"{max(m.formula_residual for m in report.measurements):.1e} ({first.method})"
    made = report.provenance
    facts["seeds"] = ", ".join(map(str, made.seeds))
    facts["made with"] = f"featurespeed {made.featurespeed}, torch {made.torch}, {made.dtype} on {made.device}"
    items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    return f"<dl>{items}</dl>"


def warnings_html(report: Report) -> str:
    """The warnings as a list; nothing if there are none."""
    if not report.warnings:
        return ""
    items = "".join(f"<li>{html.escape(warning)}</li>" for warning in report.warnings)
    return f"<h2>Warnings</h2><ul>{items}</ul>"


def _table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]], *, marked: bool = False) -> str:
    """A table whose first column heads its rows; a column without entries is left out."""
    filled = [i for i, _ in enumerate(titles) if any(row[i] for row in rows)]
    titles, rows = [titles[i] for i in filled], [[row[i] for i in filled] for row in rows]
    shown = list(rows)
    if len(rows) > MOST_ROWS:
        gap = [f"… {len(rows) - MOST_ROWS} more, in the JSON report", *[""] * (len(rows[0]) - 1)]
        shown = [*rows[: MOST_ROWS // 2], gap, *rows[-MOST_ROWS // 2 :]]
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(_cell(value, marked) for value in rest)}</tr>'
        for first, *rest in shown
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str, marked: bool) -> str:
    fails = ' class="fails"' if marked and "✗" in value else ""
    return f"<td{fails}>{html.escape(value)}</td>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _geometric(statistic: GeometricStatistic) -> str:
    spread = f" ×÷ {statistic.factor_sd:.3g}" if len(statistic.values) > 1 else ""
    return f"{statistic.mean:.4g}{spread}"


def _statistic(statistic: Statistic) -> str:
    if statistic.mean is None:
        return "–"
    return f"{statistic.mean:.3f}" + (f" ± {statistic.sd:.3f}" if len(statistic.values) > 1 else "")
