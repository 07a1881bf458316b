"""The commands and their options. A command parses, asks, delivers; see ask.py for the two ways of asking."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from featurespeed.cli import jobs, keys, plotting, serving
from featurespeed.cli.ask import Question, answer
from featurespeed.cli.outcome import DONE, INTERRUPTED, report
from featurespeed.cli.output import check_out, deliver
from featurespeed.cli.server import ApiKeyFileOption
from featurespeed.contract.request import Kind
from featurespeed.version import __version__

app = typer.Typer(
    name="featurespeed",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.commands)

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="YAML or JSON file; - reads standard input.")]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", envvar="FEATURESPEED_SERVER", help="Ask this server, not this machine."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the report here, as JSON.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON, not as a table.")]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", metavar="0,1,2", help="Instead of the spec's measurement.seeds.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Instead of the spec's measurement.steps.")
]
RefineOption = Annotated[
    int | None,
    typer.Option(
        "--refine", metavar="N", help="Refine the rates by training probes of N steps, such as 50 (scaling.refine)."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"featurespeed {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit status: 0 done, 2 bad input, 3 job failed, 4 server unreachable, 130 interrupted.")
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """The initialization scale and learning rate of every block of your architecture, with the measured evidence."""


RECOMMEND_EXAMPLES = """Examples:

  featurespeed recommend transformer.yaml

  featurespeed recommend transformer.yaml --json > report.json

  featurespeed recommend transformer.yaml --refine 50

  featurespeed recommend - --server http://localhost:8000 < spec.json

  featurespeed recommend mlp.yaml --server https://gpu.example --api-key-file ~/.featurespeed.key"""


@app.command(epilog=RECOMMEND_EXAMPLES)
def recommend(
    spec: SpecArgument,
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    refine: RefineOption = None,
) -> None:
    """Recommend initialization scales and learning rates."""
    _ask("recommend", Question(spec, server, seeds, steps, refine, api_key_file), as_json, out)


MEASURE_EXAMPLES = """Examples:

  featurespeed measure mlp.yaml

  featurespeed measure mlp.yaml --seeds 0,1,2,3 --steps 100 --out report.json"""


@app.command(epilog=MEASURE_EXAMPLES)
def measure(
    spec: SpecArgument,
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
) -> None:
    """Measure angles, feature speeds and contributions under a given scaling."""
    _ask("measure", Question(spec, server, seeds, steps, api_key_file=api_key_file), as_json, out)


plotting.register(app)
serving.register(app)


def _ask(kind: Kind, question: Question, as_json: bool, out: Path | None) -> None:
    check_out(out)
    deliver(answer(kind, question), as_json=as_json, out=out)


def run(arguments: list[str]) -> int:
    """Run a command; its exit status. Nothing is raised: every error has been told."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # θ and τ on a terminal that has no Greek
    try:
        status = app(arguments, prog_name="featurespeed", standalone_mode=False)
        if status == INTERRUPTED:
            return report(KeyboardInterrupt())
        return status if isinstance(status, int) else DONE
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
