"""From a file to a stored dataset or checkpoint: the check, and the uploads of before datasets lay in the database."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from featurespeed.contract import SpecError
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_workers.checkpoint_files import check_checkpoint
from featurespeed_workers.dataset_files import DatasetInfo, check_dataset

log = logging.getLogger(__name__)

UPLOAD_PREFIX = "upload-"
"""Of the files in which uploads lie until they are checked."""
ABANDONED_SECONDS = 3600.0

FACTS = TypeAdapter(DatasetInfo)
"""What is known of a dataset, between its row and Python."""


def publish(store: DatasetStore, sha256: str, path: Path) -> bool:
    """Check a file that has this SHA-256 and store it; whether it is new. Raises SpecError if it is not of its kind."""
    if store.use(sha256) is not None:
        return False
    facts = FACTS.dump_json(check_dataset(path)).decode() if store.kind == "dataset" else _checkpoint_facts(path)
    with path.open("rb") as content:
        return store.add(sha256, facts, content)


def _checkpoint_facts(path: Path) -> str:
    """Nothing but what a checkpoint's kind says: whether it fits an architecture, who builds that will see."""
    check_checkpoint(path)
    return "{}"


def take_over(store: DatasetStore, directory: Path) -> None:
    """Move the files ``SHA-256.safetensors`` of a directory into the database; one that is damaged stays, and is named.

    Each is stored before it is removed, so that breaking off loses nothing.
    """
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with path.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != path.stem:
                    log.warning("%s is left where it is: its SHA-256 is another", path)
                    continue
            publish(store, path.stem, path)
            path.unlink(missing_ok=True)
        except (SpecError, FileNotFoundError) as error:  # not found: another process has just moved it
            log.warning("%s is left where it is: %s", path, error)


def remove_abandoned(directory: Path) -> None:
    """Remove what is left of uploads to a process that was killed."""
    for path in directory.glob(f"{UPLOAD_PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
