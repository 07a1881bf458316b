"""Uploaded datasets: files named by their SHA-256, checked before they get that name."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from featurespeed.contract import Dataset, FieldError, JobRequest, SpecError
from featurespeed_service.api.problems import InvalidField
from featurespeed_workers.dataset_files import DatasetInfo, check_dataset, check_fits


def dataset_path(directory: Path, request: JobRequest) -> Path | None:
    """Where the dataset of a request lies; ``None`` if it needs none."""
    return directory / f"{request.data.sha256}.safetensors" if isinstance(request.data, Dataset) else None


class DatasetLibrary:
    """The datasets in a directory, which must exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # a name stands for its content for ever, so that what was found once stays true
        self._info = lru_cache(maxsize=256)(check_dataset)

    async def add(self, sha256: str, body: AsyncIterator[bytes]) -> bool:
        """Store a file; whether it is new. Never shows a partial file, also not after a crash.

        Raises InvalidField if the body has another digest, SpecError if it is no dataset.
        """
        digest = hashlib.sha256()
        handle, name = tempfile.mkstemp(prefix="upload-", dir=self._directory)
        upload = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                async for piece in body:
                    digest.update(piece)
                    file.write(piece)
                if digest.hexdigest() != sha256:
                    raise InvalidField("sha256", sha256, f"the body's SHA-256 is {digest.hexdigest()}")
                file.flush()
                await run_in_threadpool(os.fsync, file.fileno())
            return await run_in_threadpool(self._publish, upload, sha256)
        finally:
            upload.unlink(missing_ok=True)

    def _publish(self, upload: Path, sha256: str) -> bool:
        path = self._directory / f"{sha256}.safetensors"
        if path.exists():
            return False
        check_dataset(upload)
        upload.replace(path)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return True

    def check(self, request: JobRequest) -> None:
        """Check that the dataset of a request is here and fits it; raises SpecError."""
        path = dataset_path(self._directory, request)
        if path is None:
            return
        if not path.is_file():
            bound = "no such dataset here; send it with PUT /v1/datasets/{sha256} first"
            raise SpecError([FieldError(field="data.sha256", value=path.stem, bound=bound)])
        info: DatasetInfo = self._info(path)
        check_fits(info, request)
