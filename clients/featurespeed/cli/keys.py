"""``featurespeed keys``: the API keys of a service, made and revoked in its database."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurespeed.cli.output import print_text
from featurespeed.contract.job import FieldError
from featurespeed.contract.validation import SpecError

if TYPE_CHECKING:
    from featurespeed_service.store.keys import ApiKey, KeyStore

commands = typer.Typer(
    name="keys", help="Make, list and revoke API keys, in the database itself.", no_args_is_help=True
)

DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="As for serve; else FEATURESPEED_DATABASE.")
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="As for serve; else FEATURESPEED_DATA_DIR.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@commands.command(epilog="Example:\n\n  featurespeed keys create alice --max-active-jobs 20 --requests-per-minute 600")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for; also its tenant, unless one is named.")],
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose jobs it reaches; keys may share one.")
    ] = None,
    scopes: Annotated[
        str, typer.Option(metavar="A,B", help="Of jobs:read, jobs:write, metrics:read.")
    ] = "jobs:read,jobs:write",
    max_active_jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=2**31 - 1, help="Queued and running jobs of the tenant.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1_000_000, help="Of this key, at each replica of the API.")
    ] = None,
    database: DatabaseOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> int:
    """Make a key and print it, this once."""
    from featurespeed_service.store.keys import Grant

    _check_name("NAME", name)
    _check_name("--tenant", tenant or name)
    grant = Grant(tenant or name, _scopes(scopes), max_active_jobs, requests_per_minute)

    def work(keys: KeyStore) -> None:
        key, token = keys.create(name, grant)
        print_text(json.dumps({"key": token, **_shown(key)}) + "\n" if as_json else f"{token}\n")
        if not as_json:
            print("This key is shown only now; the database has no more than a digest of it.", file=sys.stderr)

    return _with_keys(database, data_dir, work)


@commands.command("list")
def list_keys(database: DatabaseOption = None, data_dir: DataDirOption = None, as_json: JsonOption = False) -> int:
    """List the keys, revoked ones too."""

    def work(keys: KeyStore) -> None:
        found = [_shown(key) for key in keys.all()]
        print_text(json.dumps(found) + "\n" if as_json else _table(found))

    return _with_keys(database, data_dir, work)


@commands.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The middle part of fsk_ID_SECRET; keys list shows it.")],
    database: DatabaseOption = None,
    data_dir: DataDirOption = None,
) -> int:
    """Revoke a key: a running service refuses it within seconds."""
    from featurespeed_service.store.keys import KeyNotFound

    def work(keys: KeyStore) -> None:
        try:
            key = keys.revoke(key_id)
        except KeyNotFound:
            raise SpecError([FieldError(field="ID", value=key_id, bound="no key has this id")]) from None
        print_text(f"{key.id} ({key.name}) is revoked\n")

    return _with_keys(database, data_dir, work)


def _with_keys(database: str | None, data_dir: Path | None, work: Callable[[KeyStore], None]) -> int:
    from featurespeed_service.opening import CannotStart, opened, refuse, settings_of

    try:
        store = opened(settings_of(database, data_dir=data_dir))
    except CannotStart as error:
        return refuse(error)
    with closing(store):
        work(store.keys)
    return 0


def _check_name(field: str, name: str) -> None:
    from featurespeed_service.settings import NAME

    if not NAME.fullmatch(name):
        bound = "should be 1 to 64 letters, digits, '.', '_', '@' and '-', and begin with a letter or digit"
        raise SpecError([FieldError(field=field, value=name, bound=bound)])


def _scopes(text: str) -> Any:
    from featurespeed_service.store.keys import SCOPES

    given = [scope.strip() for scope in text.split(",")]
    if unknown := [scope for scope in given if scope not in SCOPES]:
        bound = f"should be of {', '.join(SCOPES)}, with commas"
        raise SpecError([FieldError(field="--scopes", value=unknown[0], bound=bound)])
    return tuple(scope for scope in SCOPES if scope in given)


def _shown(key: ApiKey) -> dict[str, Any]:
    """A key as a listing has it: without its digest, which is nobody's business either."""
    when = {"created_at": _time(key.created_at), "revoked_at": _time(key.revoked_at)}
    return {"id": key.id, "name": key.name, **asdict(key.grant), **when}


def _time(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _table(keys: list[dict[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("id", "name", "tenant", "scopes", "jobs", "per minute", "created", "revoked"):
        table.add_column(head, overflow="fold")
    for key in keys:
        limits = [str(key[name] or "any") for name in ("max_active_jobs", "requests_per_minute")]
        who = [key["id"], key["name"], key["tenant"], " ".join(key["scopes"])]
        table.add_row(*who, *limits, key["created_at"], key["revoked_at"] or "")
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
