"""A report as one HTML file that opens offline: the tables, the figures, and plotly's own JavaScript within."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from string import Template

from featurespeed.contract.report import Report
from featurespeed.figures import figures_of
from featurespeed.figures.style import Figure
from featurespeed.figures.tables import report_html


def page(report: Report, other: Report | None = None, *, title: str = "featurespeed report") -> str:
    """The page; raises ModuleNotFoundError without plotly (extra ``plot``)."""
    figures = figures_of(report, other)
    parts = {
        "title": html.escape(title),
        "report": report_html(report),
        "figures": "\n".join(_placeholder(figure) for figure in figures.values()),
        "data": script_json({name: figure.to_dict() for name, figure in figures.items()}),
        "style": _asset("figures.css") + _asset("page.css"),
        "draw": _asset("figures.js"),
        "plotly": plotly_javascript(),
    }
    return Template(_asset("page.html")).substitute(parts)


def plotly_javascript() -> str:
    """plotly.js as the Python package carries it."""
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def script_json(value: Mapping[str, object]) -> str:
    """JSON that may stand within a ``script`` element, whatever its texts say."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _placeholder(figure: Figure) -> str:
    """Where the figure is drawn; its caption says in words what it shows."""
    height = int(figure.layout["height"])
    return (
        f"<figure><figcaption><h2>{html.escape(figure.title)}</h2><p>{html.escape(figure.caption)}</p></figcaption>"
        f'<div class="plot" data-figure="{figure.name}" style="height:{height}px"></div></figure>'
    )


def _asset(name: str) -> str:
    return resources.files("featurespeed.figures").joinpath("assets", name).read_text(encoding="utf-8")
