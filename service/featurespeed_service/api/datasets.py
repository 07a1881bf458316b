"""Uploads of datasets: checked in a temporary file, then stored for every process to read."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from featurespeed.contract import Dataset, FieldError, JobRequest, SpecError
from featurespeed_service.api.problems import InvalidField
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_service.store.uploads import FACTS, publish
from featurespeed_workers.dataset_files import check_fits


class DatasetLibrary:
    """The datasets of one tenant; ``directory`` is where uploads lie until they are checked."""

    def __init__(self, store: DatasetStore, directory: Path) -> None:
        self._store = store
        self._directory = directory

    async def add(self, sha256: str, body: AsyncIterator[bytes]) -> bool:
        """Store a file; whether it is new. Never shows a partial file, also not after a crash.

        Raises InvalidField if the body has another digest, SpecError if it is no dataset.
        """
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(prefix="upload-", dir=self._directory) as upload:
            async for piece in body:
                digest.update(piece)
                upload.write(piece)
            if digest.hexdigest() != sha256:
                raise InvalidField("sha256", sha256, f"the body's SHA-256 is {digest.hexdigest()}")
            upload.flush()
            return await run_in_threadpool(publish, self._store, sha256, Path(upload.name))

    def check(self, request: JobRequest) -> None:
        """Check that the dataset of a request is here and fits it; raises SpecError."""
        if not isinstance(request.data, Dataset):
            return
        found = self._store.use(request.data.sha256)
        if found is None:
            bound = "no such dataset here; send it with PUT /v1/datasets/{sha256} first"
            raise SpecError([FieldError(field="data.sha256", value=request.data.sha256, bound=bound)])
        check_fits(FACTS.validate_json(found.facts), request)
