"""Uploads of datasets: checked in a temporary file, then stored for every process to read."""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from featurespeed.contract import Dataset, FieldError, JobRequest, SpecError
from featurespeed_service.api.problems import InvalidField
from featurespeed_service.store.datasets import DatasetStore
from featurespeed_service.store.errors import StoreFull
from featurespeed_service.store.uploads import FACTS, UPLOAD_PREFIX, publish
from featurespeed_workers.dataset_files import check_fits


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no room for the upload: {error.strerror}") from error
        raise


class DatasetLibrary:
    """The datasets of one tenant; ``directory`` is where uploads lie until they are checked."""

    def __init__(self, store: DatasetStore, directory: Path) -> None:
        self._store = store
        self._directory = directory

    async def add(self, sha256: str, body: AsyncIterator[bytes]) -> bool:
        """Store a file; whether it is new. Never shows a partial file, also not after a crash.

        Raises InvalidField if the body has another digest, SpecError if it is no dataset, StoreFull.
        """
        digest = hashlib.sha256()
        with _full_disk_told(), tempfile.NamedTemporaryFile(prefix=UPLOAD_PREFIX, dir=self._directory) as upload:
            async for piece in body:
                digest.update(piece)
                upload.write(piece)
            if digest.hexdigest() != sha256:
                raise InvalidField("sha256", sha256, f"the body's SHA-256 is {digest.hexdigest()}")
            upload.flush()
            return await run_in_threadpool(publish, self._store, sha256, Path(upload.name))

    def check(self, request: JobRequest) -> None:
        """Check that the dataset of a request is here and fits it; raises SpecError."""
        if request.checkpoint is not None:
            bound = "a service takes no checkpoints yet; ask in-process"
            raise SpecError([FieldError(field="checkpoint.sha256", value=request.checkpoint.sha256, bound=bound)])
        if not isinstance(request.data, Dataset):
            return
        found = self._store.use(request.data.sha256)
        if found is None:
            bound = "no such dataset here; send it with PUT /v1/datasets/{sha256} first"
            raise SpecError([FieldError(field="data.sha256", value=request.data.sha256, bound=bound)])
        check_fits(FACTS.validate_json(found.facts), request)
