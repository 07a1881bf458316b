"""A report in a notebook: light enough to be kept in it, and shown without JavaScript."""

from __future__ import annotations

import base64

from featurespeed.contract.report import Report
from featurespeed.figures import figures_of
from featurespeed.figures.tables import report_html

FIGURES = ("angles", "contributions")


def shown(report: Report) -> str:
    """HTML: what concerns the whole network, the tables, and as an image the angles and contributions."""
    return f"<div>{report_html(report)}{_image(report)}</div>"


def _image(report: Report) -> str:
    try:
        from featurespeed.figures.drawing import image

        figures = [figure for name, figure in figures_of(report).items() if name in FIGURES]
        if not figures:
            return ""
        drawn = base64.b64encode(image(figures, "png", dpi=90)).decode()
    except ModuleNotFoundError:  # without matplotlib the tables must do
        return ""
    words = "; ".join(figure.title for figure in figures)
    return f'<img alt="{words}" src="data:image/png;base64,{drawn}" style="background: white">'
