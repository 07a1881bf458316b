"""The commands of those who run the service: ``serve``, ``dispatcher`` and ``database``; see the extra ``service``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="SQLAlchemy URL; else SQLite in the data directory.")
]
RayOption = Annotated[
    str | None, typer.Option("--ray-address", metavar="ADDR", help="A Ray cluster; else one is started here.")
]
DataOption = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Where jobs and datasets are kept.")]

SERVE_EXAMPLES = """Examples:

  featurespeed serve --port 8000

  featurespeed serve --no-dispatcher --host 0.0.0.0 --database postgresql://user@host/name"""


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    database: DatabaseOption = None,
    ray_address: RayOption = None,
    data_dir: DataOption = None,
    dispatcher: Annotated[
        bool,
        typer.Option(
            "--dispatcher/--no-dispatcher", help="Compute here, or leave that to [i]featurespeed dispatcher[/i]."
        ),
    ] = True,
) -> int:
    """Run the service until Ctrl-C."""
    from featurespeed_service.serve import serve as run_service

    return run_service(host, port, database, ray_address, data_dir, dispatcher=dispatcher)


DISPATCHER_EXAMPLES = """Examples:

  featurespeed dispatcher --database postgresql://user@host/name

  featurespeed dispatcher --database postgresql://user@host/name --ray-address 127.0.0.1:6379"""


def dispatcher(database: DatabaseOption = None, ray_address: RayOption = None, data_dir: DataOption = None) -> int:
    """Compute the jobs in a database until Ctrl-C; the API runs elsewhere, by serve --no-dispatcher.

    With --ray-address a node of that Ray must run on this machine.
    """
    from featurespeed_service.operating import run_dispatcher

    return run_dispatcher(database, ray_address, data_dir)


database = typer.Typer(
    help="The schema of the database. Starting the service brings it up to date by itself.",
    no_args_is_help=False,
    rich_markup_mode="rich",
)


@database.command(epilog="Example:\n\n  featurespeed database upgrade --database postgresql://user@host/name")
def upgrade(url: DatabaseOption = None, data_dir: DataOption = None) -> int:
    """Bring the schema up to date; several may do so at once."""
    from featurespeed_service.operating import upgrade_database

    return upgrade_database(url, data_dir)


@database.command(epilog="Example:\n\n  featurespeed database current --database postgresql://user@host/name")
def current(url: DatabaseOption = None, data_dir: DataOption = None) -> int:
    """Print the schema's revision, and the one that this program needs; changes nothing."""
    from featurespeed_service.operating import print_revision

    return print_revision(url, data_dir)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command(epilog=SERVE_EXAMPLES)(serve)
    app.command(epilog=DISPATCHER_EXAMPLES)(dispatcher)
    app.add_typer(database, name="database")
