"""A report's tables: the blocks, the verdicts with their reasons, and what concerns the whole network; also as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from featurespeed.contract.properties import MEANINGS, Property, StateProperties
from featurespeed.contract.report import LayerMeasurement, Report
from featurespeed.contract.statistic import GeometricStatistic
from featurespeed.wording import judged_states, number, range_of, share, spread

MOST_ROWS = 600
"""Blocks in a table; of more, the middle ones are left out."""
FAILS = "✗ fails"
"""How the entry of a property ends that does not hold."""


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column heads its rows. Columns without entries are left out."""

    caption: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Self:
        """The table of these rows; of very many the middle ones are left out."""
        filled = [i for i, _ in enumerate(titles) if any(row[i] for row in rows)]
        shown = [[row[i] for i in filled] for row in rows]
        if len(shown) > MOST_ROWS:
            gap = [f"… {len(shown) - MOST_ROWS} more, in the JSON report", *[""] * (len(filled) - 1)]
            shown = [*shown[: MOST_ROWS // 2], gap, *shown[-MOST_ROWS // 2 :]]
        return cls(caption, [titles[i] for i in filled], shown)


def tables_of(report: Report) -> list[Table]:
    """The blocks, and the verdicts if there are any."""
    verdicts = verdict_table(report)
    return [_blocks(report), *([verdicts] if verdicts is not None else [])]


def _blocks(report: Report) -> Table:
    """What to set for every block, and what was measured there."""
    layers = {layer.index: layer for layer in report.measurements[0].layers} if report.measurements else {}
    total = sum(layer.contribution.mean or 0.0 for layer in layers.values())
    if report.recommendation is None:
        rows = [[layer.name, *_measured(layer, total)] for layer in layers.values()]
        return Table.of("Measured, block by block", ["block", *_MEASURED], rows)
    titles = ["block", "module", "init std", "÷ default", "learning rate", *_MEASURED, "note"]
    rows = [
        [
            b.name,
            "" if b.module in (None, b.name) else b.module or "",
            _geometric(b.init_std_over_seeds),
            number(b.init_ratio),
            _geometric(b.lr_over_seeds) if b.lr else "0 (does not train)",
            *(_measured(layers[b.index], total) if b.index in layers else [""] * len(_MEASURED)),
            b.note or "",
        ]
        for b in report.recommendation.blocks
    ]
    return Table.of("Recommended, block by block", titles, rows)


_MEASURED = ("angle (rad)", "feature rms", "part of decay")


def _measured(layer: LayerMeasurement, total: float) -> list[str]:
    return [spread(layer.angle), number(layer.feature_rms.mean), share(layer.contribution.mean, total)]


def verdict_table(report: Report) -> Table | None:
    """Every property: its range, value and verdict before and after, and why it fails."""
    if report.properties is None:
        return None
    known = judged_states(report.properties)
    titles = ["property", "worst block’s", "range", *(known if len(known) > 1 else ["value"]), "reason"]
    rows = [[name, meaning, *_verdicts(name, list(known.items()))] for name, meaning in MEANINGS.items()]
    return Table.of("Properties of the scaling", titles, rows)


def _verdicts(name: str, states: Sequence[tuple[str, StateProperties]]) -> list[str]:
    found: list[tuple[str, Property]] = [(when, getattr(state, name)) for when, state in states]
    reasons = [
        f"{when}: {p.reason}" if len(found) > 1 else str(p.reason) for when, p in found if p.holds is False and p.reason
    ]
    return [
        range_of(found[0][1]),
        *(_verdict(p) for _, p in found),
        "; ".join(reasons),
    ]


def _verdict(found: Property) -> str:
    if found.value is None:
        return "–"
    return f"{found.value:.3g} {'✓ holds' if found.holds else FAILS}"


def facts_of(report: Report) -> dict[str, str]:
    """The constants behind the recommendation, and what is needed to get the same numbers again."""
    facts: dict[str, str] = {}
    if (advice := report.recommendation) is not None:
        facts["master learning rate δt"] = f"{number(advice.master_lr)} (already in every rate)"
        if advice.relative_sensitivity is not None:
            facts["τ reached, κ taken"] = f"{number(advice.relative_sensitivity)}, {number(advice.feature_step)}"
        facts["warm-up"] = f"{advice.warmup_fraction:.0%} of the steps"
    if report.measurements:
        first = report.measurements[0]
        facts["loss at the start"] = number(first.loss)
        facts["formula residual"] = f"{max(m.formula_residual for m in report.measurements):.1e} ({first.method})"
    made = report.provenance
    facts["seeds"] = ", ".join(map(str, made.seeds))
    facts["made with"] = f"featurespeed {made.featurespeed}, torch {made.torch}, {made.dtype} on {made.device}"
    return facts


def _geometric(statistic: GeometricStatistic) -> str:
    factor = f" ×÷ {statistic.factor_sd:.3g}" if len(statistic.values) > 1 else ""
    return f"{statistic.mean:.4g}{factor}"


def report_html(report: Report) -> str:
    """Facts, warnings and tables as HTML; every text is escaped."""
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts_of(report).items())
    warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in report.warnings)
    told = f"<h2>Warnings</h2><ul>{warnings}</ul>" if warnings else ""
    return f"<dl>{facts}</dl>{told}{''.join(map(_table_html, tables_of(report)))}"


def _table_html(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in table.titles)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(map(_cell, rest))}</tr>' for first, *rest in table.rows
    )
    caption = html.escape(table.caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str) -> str:
    fails = ' class="fails"' if value.endswith(FAILS) else ""
    return f"<td{fails}>{html.escape(value)}</td>"
