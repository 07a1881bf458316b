"""The command line: ``featurespeed recommend | measure | serve``."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command of ``sys.argv`` and exit with its status (see :mod:`featurespeed.cli.outcome`)."""
    try:
        from featurespeed.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "yaml"):
            raise
        print(f"error: {error.name} is not installed: pip install 'featurespeed[cli]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
