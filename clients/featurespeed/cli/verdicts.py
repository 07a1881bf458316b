"""The verdicts of a report as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from featurespeed.contract.properties import MEANINGS, Properties, Property


def verdict_table(properties: Properties) -> Table:
    """One row a property: what it is about, its range, and value and verdict before and after."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    states = {"before": properties.before, "after": properties.after}
    known = {when: state for when, state in states.items() if state is not None}
    for title in ("property", "worst block's", "range"):
        table.add_column(title, no_wrap=True)
    for when in known:
        table.add_column(when if len(known) > 1 else "value", justify="right", no_wrap=True)
    for name, meaning in MEANINGS.items():
        row: list[Property] = [getattr(state, name) for state in known.values()]
        table.add_row(name, meaning, _range(row[0]), *map(_verdict, row))
    return table


def reasons(properties: Properties) -> Iterator[tuple[str, str]]:
    """Why each property fails: state and property, and the sentence."""
    states = {"before": properties.before, "after": properties.after}
    known = {when: state for when, state in states.items() if state is not None}
    for when, state in known.items():
        for name in MEANINGS:
            verdict: Property = getattr(state, name)
            if verdict.holds is False:
                yield f"{when} {name}" if len(known) > 1 else name, verdict.reason or ""


def _range(verdict: Property) -> str:
    low, high = verdict.range
    return f"≤ {high:.3g}" if low == 0 else f"{low:.3g} to {high:.3g}"


def _verdict(verdict: Property) -> Text:
    if verdict.value is None:
        return Text("–")
    return Text(f"{verdict.value:.3g} {'✓' if verdict.holds else '✗'}", style="" if verdict.holds else "red")
