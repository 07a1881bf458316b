"""Every figure of a report, defined once: for notebooks, files, the command line and the web page.

A figure is plain data in plotly's terms, so that making one needs no library; ``report.plot()`` gives plotly's objects,
``page.py`` a page that opens offline, ``drawing.py`` PNG and SVG by matplotlib.
"""

from __future__ import annotations

from featurespeed.contract.report import Report
from featurespeed.figures.layers import angles, contributions, sizes
from featurespeed.figures.scaling import scaling
from featurespeed.figures.style import Figure
from featurespeed.figures.training import angles_along_training, losses
from featurespeed.figures.verdicts import properties

__all__ = ["Figure", "figures_of"]


def figures_of(report: Report, other: Report | None = None, *, verdicts: bool = False) -> dict[str, Figure]:
    """The figures that ``report`` has the numbers for, by name in reading order; ``other`` is drawn beside it.

    ``verdicts``: the properties too, as a figure; pages have them as a table of their own.
    """
    made = (
        scaling(report, other),
        properties(report) if verdicts else None,
        angles(report, other) if report.measurements else None,
        contributions(report, other) if report.measurements else None,
        sizes(report, other) if report.measurements else None,
        losses(report, other),
        angles_along_training(report),
    )
    return {figure.name: figure for figure in made if figure is not None}
