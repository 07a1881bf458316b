"""The properties of a scaling as a figure: a table of verdicts, with the reasons of what does not hold."""

from __future__ import annotations

from itertools import zip_longest

from featurespeed.contract.report import Report
from featurespeed.figures.style import CLEAR, GREY, RED, Figure, layout, text
from featurespeed.figures.tables import FAILS, verdict_table

WIDTHS = {"property": 1, "worst block’s": 2.4, "range": 1.5, "reason": 6}
"""Of columns, as multiples of a narrow one; others have 1.3."""


def properties(report: Report) -> Figure | None:
    """The verdicts before and after; ``None`` without any."""
    table = verdict_table(report)
    if table is None:
        return None
    columns = [list(column) for column in zip_longest(*table.rows)]
    return Figure(
        "properties",
        table.caption,
        "What a good scaling has, as the paper defines it; the value is that of the worst block.",
        (
            {
                "type": "table",
                "columnwidth": [WIDTHS.get(title, 1.3) for title in table.titles],
                "header": {
                    "values": [text(title) for title in table.titles],
                    "align": "left",
                    "fill": {"color": CLEAR},
                    "line": {"color": GREY},
                },
                "cells": {
                    "values": [[text(entry) for entry in column] for column in columns],
                    "align": "left",
                    "fill": {"color": CLEAR},
                    "line": {"color": GREY},
                    "font": {"color": [[RED if e.endswith(FAILS) else GREY for e in column] for column in columns]},
                    "height": 26,
                },
            },
        ),
        layout(330, margin={"l": 10, "r": 10, "t": 10, "b": 10}),
    )
