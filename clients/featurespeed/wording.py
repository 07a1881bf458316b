"""Numbers and verdicts of a report as short texts: one way of saying them, for terminals, pages and figures."""

from __future__ import annotations

from featurespeed.contract.properties import Properties, Property, StateProperties
from featurespeed.contract.statistic import Statistic


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is undefined."""
    return "–" if value is None else f"{value:.4g}"


def spread(statistic: Statistic) -> str:
    """Mean and, over more than one seed, standard deviation."""
    if statistic.mean is None or statistic.sd is None:
        return "–"
    return f"{statistic.mean:.3f} ± {statistic.sd:.3f}" if len(statistic.values) > 1 else f"{statistic.mean:.3f}"


def share(part: float | None, total: float) -> str:
    """A part in per cent."""
    return "–" if part is None or total == 0 else f"{part / total:.1%}"


def judged_states(properties: Properties) -> dict[str, StateProperties]:
    """The states that are judged, by ``before`` and ``after``."""
    states = {"before": properties.before, "after": properties.after}
    return {when: state for when, state in states.items() if state is not None}


def range_of(verdict: Property) -> str:
    """Where the value of a property should be."""
    low, high = verdict.range
    return f"≤ {high:.3g}" if low == 0 else f"{low:.3g} to {high:.3g}"
