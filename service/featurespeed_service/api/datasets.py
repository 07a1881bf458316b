"""Uploads of datasets and checkpoints: checked in a temporary file, then stored for every process to read."""

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
from featurespeed_service.store.datasets import DatasetStore, FileKind, StoredDataset
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
    """The datasets and checkpoints of one tenant; ``directory`` is where uploads lie until they are checked."""

    def __init__(self, store: DatasetStore, directory: Path) -> None:
        self._store = store
        self._directory = directory

    async def add(self, kind: FileKind, sha256: str, body: AsyncIterator[bytes]) -> bool:
        """Store a file; whether it is new. Never shows a partial file, also not after a crash.

        Raises InvalidField if the body has another digest, SpecError if it is not of that kind, StoreFull.
        """
        digest = hashlib.sha256()
        with _full_disk_told(), tempfile.NamedTemporaryFile(prefix=UPLOAD_PREFIX, dir=self._directory) as upload:
            async for piece in body:
                digest.update(piece)
                upload.write(piece)
            if digest.hexdigest() != sha256:
                raise InvalidField("sha256", sha256, f"the body's SHA-256 is {digest.hexdigest()}")
            upload.flush()
            return await run_in_threadpool(publish, self._store.of_kind(kind), sha256, Path(upload.name))

    def check(self, request: JobRequest) -> None:
        """Check that the files of a request are here, and that its dataset fits it; raises SpecError."""
        if request.checkpoint is not None:
            self._use("checkpoint", "checkpoint.sha256", request.checkpoint.sha256)
        if isinstance(request.data, Dataset):
            found = self._use("dataset", "data.sha256", request.data.sha256)
            check_fits(FACTS.validate_json(found.facts), request)

    def _use(self, kind: FileKind, field: str, sha256: str) -> StoredDataset:
        found = self._store.of_kind(kind).use(sha256)
        if found is None:
            bound = f"no such {kind} here; send it with PUT /v1/{kind}s/{{sha256}} first"
            raise SpecError([FieldError(field=field, value=sha256, bound=bound)])
        return found
