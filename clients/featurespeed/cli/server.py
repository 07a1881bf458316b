"""The server that is asked, and the key that it is shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurespeed.contract.job import FieldError
from featurespeed.contract.validation import SpecError

if TYPE_CHECKING:
    from featurespeed.client import Client

LONGEST_KEY_FILE = 4096
KEY_FORM = "the key fsk_… alone, without spaces"

ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="File with the server's API key; else FEATURESPEED_API_KEY. No option takes the key itself: "
        "command lines are seen by others (ps) and kept by shells.",
    ),
]


def open_client(server: str, api_key_file: Path | None = None) -> Client:
    """A client of the server that an option names; raises SpecError, BadParameter, OSError."""
    from featurespeed.client import API_KEY, Client, is_key

    if api_key_file is not None:
        key, source = _key_in(api_key_file), "--api-key-file"
    else:
        key, source = os.environ.get(API_KEY, "").strip(), API_KEY
    if not is_key(key) or (api_key_file is not None and not key):
        where = "" if api_key_file is None else f"{api_key_file} "
        raise typer.BadParameter(f"{where}should hold {KEY_FORM}", param_hint=source)  # never shows it
    try:
        return Client(server, api_key=key)
    except ValueError:
        bound = "should begin with http:// or https:// and name a host"
        raise SpecError([FieldError(field="--server", value=server, bound=bound)]) from None


def _key_in(path: Path) -> str:
    with path.open("rb") as file:  # may be a pipe: <(pass show featurespeed)
        return file.read(LONGEST_KEY_FILE).decode("utf-8", "replace").strip()
