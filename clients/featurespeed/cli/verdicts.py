"""The verdicts of a report as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from featurespeed.contract.properties import MEANINGS, Properties, Property
from featurespeed.wording import judged_states, range_of


def verdict_table(properties: Properties) -> Table:
    """One row a property: what it is about, its range, and value and verdict before and after."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    known = judged_states(properties)
    for title in ("property", "worst block's", "range"):
        table.add_column(title, no_wrap=True)
    for when in known:
        table.add_column(when if len(known) > 1 else "value", justify="right", no_wrap=True)
    for name, meaning in MEANINGS.items():
        row: list[Property] = [getattr(state, name) for state in known.values()]
        table.add_row(name, meaning, range_of(row[0]), *map(_verdict, row))
    return table


def reasons(properties: Properties) -> Iterator[tuple[str, str]]:
    """Why each property fails: state and property, and the sentence."""
    known = judged_states(properties)
    for when, state in known.items():
        for name in MEANINGS:
            verdict: Property = getattr(state, name)
            if verdict.holds is False:
                yield f"{when} {name}" if len(known) > 1 else name, verdict.reason or ""


def _verdict(verdict: Property) -> Text:
    if verdict.value is None:
        return Text("–")
    return Text(f"{verdict.value:.3g} {'✓' if verdict.holds else '✗'}", style="" if verdict.holds else "red")
