"""The figures as PNG and SVG, drawn by matplotlib: it works offline and needs no browser.

It knows what our figures use of plotly's terms: lines, bands, bars, markers, heat maps, levels and labels.
"""

from __future__ import annotations

import html
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from featurespeed.contract.report import Report
from featurespeed.figures import figures_of
from featurespeed.figures.style import GREY, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

WIDTH = 9.0
"""Inches; a hundred pixels of a figure's height are one."""
_DASHES = {"solid": "-", "dash": "--", "dot": ":"}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "x": "x", "line-ew": "_"}
_HATCHES = {"": "", "/": "//", ".": ".."}


def drawn(report: Report, kind: str, other: Report | None = None) -> bytes:
    """All figures, one below the other, as ``png`` or ``svg``; raises ModuleNotFoundError without matplotlib."""
    return image(list(figures_of(report, other, verdicts=True).values()), kind)


def image(figures: Sequence[Figure], kind: str, *, dpi: int = 130) -> bytes:
    """Figures below one another as ``png`` or ``svg``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawn

    heights = [figure.layout["height"] / 100 + 0.6 for figure in figures]
    with mpl.rc_context({"svg.hashsalt": "featurespeed", "font.size": 9, "svg.fonttype": "path"}):
        whole = Drawn(figsize=(WIDTH, sum(heights)), layout="constrained")
        parts = whole.subfigures(len(figures), 1, height_ratios=heights, squeeze=False)
        for figure, part in zip(figures, parts[:, 0], strict=True):
            part.suptitle(figure.title, fontsize=11, fontweight="bold")
            _draw(figure, part)
        content = io.BytesIO()
        whole.savefig(content, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _draw(figure: Figure, part: Any) -> None:
    layout = figure.layout
    if figure.data[0]["type"] == "table":
        _table(part.subplots(), figure.data[0])
        return
    panels = sorted({trace.get("yaxis", "y") for trace in figure.data}, key=lambda y: int(y[1:] or 1))
    columns = 2 if len(panels) == 4 else 1
    grid = part.subplots(math.ceil(len(panels) / columns), columns, squeeze=False)
    axes = dict(zip(panels, grid.flat, strict=True))
    for name, panel in axes.items():
        number = name[1:]
        own = [t for t in figure.data if t.get("yaxis", "y") == name]
        _traces(panel, own, part)
        _axes(panel, layout[f"xaxis{number}"], layout[f"yaxis{number}"])
        _levels(panel, layout, name)
        if len(panels) == 4:
            panel.set_title(layout["annotations"][panels.index(name)]["text"], loc="left", fontsize=9)
    handles = {
        label: handle
        for panel in axes.values()
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        next(iter(axes.values())).legend(handles.values(), handles.keys(), fontsize=8, frameon=False, ncols=4)


REASON_WIDTH = 52
"""Characters in a line of a table's last column."""


def _table(panel: Axes, trace: Mapping[str, Any]) -> None:
    from matplotlib.transforms import Bbox

    panel.axis("off")
    columns = [[html.unescape(entry) for entry in column] for column in trace["cells"]["values"]]
    columns[-1] = ["\n".join(textwrap.wrap(entry, REASON_WIDTH)) for entry in columns[-1]]
    widths = [width / sum(trace["columnwidth"]) for width in trace["columnwidth"]]
    rows = list(zip(*columns, strict=True))
    lines = [1, *(max(entry.count("\n") + 1 for entry in row) for row in rows)]
    table = panel.table(
        rows, colLabels=trace["header"]["values"], colWidths=widths, cellLoc="left", colLoc="left", bbox=Bbox.unit()
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (row, column), cell in table.get_celld().items():
        cell.set(height=lines[row] / sum(lines), edgecolor="#cccccc")
        if row > 0:
            cell.get_text().set_color("black" if (c := trace["cells"]["font"]["color"][column][row - 1]) == GREY else c)


def _traces(panel: Axes, traces: Sequence[Mapping[str, Any]], part: Drawn) -> None:
    bars = [t for t in traces if t["type"] == "bar"]
    lower: Sequence[float] = ()
    for trace in traces:
        label = trace["name"] if trace.get("showlegend", True) and "name" in trace else None
        if trace["type"] == "heatmap":
            _heat_map(panel, trace, part)
        elif trace["type"] == "bar":
            width = 0.8 / len(bars)
            x = [i + (bars.index(trace) - (len(bars) - 1) / 2) * width for i in trace["x"]]
            marker = trace["marker"]
            hatch = _HATCHES[marker["pattern"]["shape"]]
            panel.bar(x, _gaps(trace["y"]), width, color=marker["color"], hatch=hatch, edgecolor="white", label=label)
        elif "fill" in trace:
            upper = _gaps(trace["y"])
            if trace["fill"] == "tonexty":
                panel.fill_between(trace["x"], lower, upper, color=trace["line"]["color"], alpha=0.2, linewidth=0)
            lower = upper
        else:
            _line(panel, trace, label)


def _line(panel: Axes, trace: Mapping[str, Any], label: str | None) -> None:
    line, marker = trace.get("line", {}), trace.get("marker", {})
    lines, marks = "lines" in trace["mode"], "markers" in trace["mode"]
    y = _gaps(trace["y"])
    panel.plot(
        trace["x"],
        y,
        color=line.get("color") or marker.get("color"),
        linestyle=_DASHES[line.get("dash", "solid")] if lines else "",
        linewidth=0.8 * line.get("width", 2) if lines else 0,
        marker=_MARKERS[marker["symbol"]] if marks else "",
        markersize=0.7 * marker.get("size", 6),
        alpha=trace.get("opacity", 1),
        label=label,
    )
    if errors := trace.get("error_y"):
        bars = [_gaps(errors["arrayminus"]), _gaps(errors["array"])]
        panel.errorbar(trace["x"], y, yerr=bars, fmt="none", color=marker["color"], linewidth=1, capsize=2)


def _heat_map(panel: Axes, trace: Mapping[str, Any], part: Drawn) -> None:
    z = [_gaps(row) for row in trace["z"]]
    mesh = panel.pcolormesh(_edges(trace["x"]), _edges(trace["y"]), z, cmap="cividis", rasterized=True)
    part.colorbar(mesh, ax=panel, label=trace["colorbar"]["title"]["text"])


def _edges(centres: Sequence[float]) -> list[float]:
    """Of cells around these centres."""
    if len(centres) == 1:
        return [centres[0] - 0.5, centres[0] + 0.5]
    between = [(a + b) / 2 for a, b in pairwise(centres)]
    return [2 * centres[0] - between[0], *between, 2 * centres[-1] - between[-1]]


def _axes(panel: Axes, x: Mapping[str, Any], y: Mapping[str, Any]) -> None:
    axes: tuple[tuple[Mapping[str, Any], Literal["x", "y"]], ...] = ((x, "x"), (y, "y"))
    for own, name in axes:
        getattr(panel, f"set_{name}label")(own["title"]["text"])
        if own.get("type") == "log":
            getattr(panel, f"set_{name}scale")("log")
        if "range" in own:
            getattr(panel, f"set_{name}lim")(*own["range"])
        if "tickvals" in own:
            rotation = -own.get("tickangle", 0)
            getattr(panel, f"set_{name}ticks")(own["tickvals"], own["ticktext"], rotation=rotation)
        if own.get("showgrid", True):
            panel.grid(axis=name, alpha=0.3)
    if y.get("rangemode") == "tozero" and panel.get_ylim()[0] > 0:
        panel.set_ylim(bottom=0)
    panel.spines[["top", "right"]].set_visible(False)


def _levels(panel: Axes, layout: Mapping[str, Any], name: str) -> None:
    for shape in layout.get("shapes", []):
        if shape["yref"] == name:
            panel.axhline(shape["y0"], color=shape["line"]["color"], linestyle="--", linewidth=1)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
