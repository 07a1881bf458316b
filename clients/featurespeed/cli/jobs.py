"""``featurespeed jobs``: look at the jobs of a server, stop and repeat them; and, for operators, delete old ones."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, get_args

import typer

from featurespeed.cli.job_tables import job_json, jobs_json, jobs_text, shown_job
from featurespeed.cli.outcome import BAD_INPUT, DONE
from featurespeed.cli.output import print_text
from featurespeed.cli.server import ApiKeyFileOption, open_client
from featurespeed.contract.job import TERMINAL, FieldError, Status
from featurespeed.contract.request import Kind
from featurespeed.contract.validation import SpecError

DEFAULT_SERVER = "http://127.0.0.1:8000"
UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

app = typer.Typer(no_args_is_help=True, help="List, show, cancel, retry and prune jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
ServerOption = Annotated[
    str, typer.Option("--server", metavar="URL", envvar="FEATURESPEED_SERVER", help="The server to ask.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list", epilog="Example:\n\n  featurespeed jobs list --status failed --limit 5")
def list_jobs(
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="Only those of this status.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="Only those of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first: a table on a terminal, else lines with tabs."""
    for name, value, choices in (("--status", status, get_args(Status)), ("--kind", kind, get_args(Kind))):
        if value is not None and value not in choices:
            raise _refused(name, value, f"should be one of {', '.join(choices)}")
    with open_client(server, api_key_file) as client:
        jobs = client.jobs(status=status, kind=kind)  # type: ignore[arg-type]  # checked above
        found = [job.info for job in islice(jobs, limit)]
    print_text(jobs_json(found) if as_json else jobs_text(found))


@app.command(epilog="Example:\n\n  featurespeed jobs show job_a952cd0b33b06cd7f0245875 --json")
def show(
    job: JobId,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job: its status, progress, error and request."""
    with open_client(server, api_key_file) as client:
        info = client.job(job).info
    print_text(job_json(info) if as_json else shown_job(info))


@app.command()
def cancel(
    job: JobId,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a job to stop; one that has ended stays as it is."""
    with open_client(server, api_key_file) as client:
        info = client.job(job).cancel()
    print_text(job_json(info) if as_json else jobs_text([info]))


@app.command()
def retry(
    job: JobId,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: ApiKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue a failed or cancelled job again, as a new job that takes over what was finished."""
    with open_client(server, api_key_file) as client:
        info = client.job(job).retry().info
    print_text(job_json(info) if as_json else jobs_text([info]))


@app.command(epilog="Example:\n\n  featurespeed jobs prune --older-than 30d --status failed --dry-run")
def prune(
    older_than: Annotated[str, typer.Option("--older-than", metavar="30d", help="Ended so long ago: m, h, d or w.")],
    status: Annotated[
        list[str] | None, typer.Option(metavar="STATUS", help="Only those; may be repeated. Else all that ended.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="SQLAlchemy URL; else a SQLite file in the data directory.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where jobs and datasets are kept.")] = None,
) -> int:
    """Delete jobs that ended long ago, with their reports, from the database itself (not through a server)."""
    seconds = _seconds(older_than)
    chosen: frozenset[Status] = TERMINAL
    if status:
        chosen = frozenset(known for known in TERMINAL if known in status)
        if len(chosen) < len(set(status)):
            raise _refused("--status", status, f"should be of {', '.join(sorted(TERMINAL))}")

    from featurespeed_service.opening import CannotStart
    from featurespeed_service.pruning import prune as prune_jobs

    try:
        found = prune_jobs(seconds, chosen, dry_run=dry_run, database=database, data_dir=data_dir)
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print_text("".join(f"{name}\t{count}\n" for name, count in found.items()))
    verb = "would be deleted" if dry_run else "deleted"
    print(f"{sum(found.values())} jobs {verb}", file=sys.stderr)
    return DONE


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if found is None:
        raise _refused("--older-than", text, "should be a number and a unit, m, h, d or w, as in 30d")
    return int(found[1]) * UNIT_SECONDS[found[2]]


def _refused(field: str, value: object, bound: str) -> SpecError:
    return SpecError([FieldError(field=field, value=value, bound=bound)])
