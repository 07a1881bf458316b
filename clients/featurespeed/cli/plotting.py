"""``featurespeed plot``: a report as a page or an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurespeed.cli.output import check_out, write_whole
from featurespeed.contract.job import FieldError
from featurespeed.contract.validation import SpecError
from featurespeed.report_files import read_report

ENDINGS = (".html", ".png", ".svg")

EXAMPLES = """Examples:

  featurespeed plot report.json --out report.html

  featurespeed plot report.json --compare earlier.json --out angles.png

  featurespeed recommend mlp.yaml --json | featurespeed plot - --out report.html"""


def plot(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="JSON file of a report; - reads standard input.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Write it here: .html, .png or .svg.")],
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="OTHER", help="Draw this report beside it.")
    ] = None,
) -> None:
    """Draw a report: as a page that opens offline, or as an image."""
    if out.suffix.lower() not in ENDINGS:
        bound = f"the name must end with {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise SpecError([FieldError(field="--out", value=out.name, bound=bound)])
    check_out(out)
    this = read_report(report)
    other = read_report(compare) if compare is not None else None
    if out.suffix.lower() == ".html":
        from featurespeed.figures.page import page

        write_whole(
            out,
            page(
                this, other, title=f"featurespeed report {report.stem}" if str(report) != "-" else "featurespeed report"
            ),
        )
    else:
        from featurespeed.figures.drawing import drawn

        write_whole(out, drawn(this, out.suffix.lower().removeprefix("."), other))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLES)(plot)
