"""Uploaded datasets in the database, where every API and every dispatcher can read them.

The content lies in chunks, each written in a transaction of its own, and the row that shows a dataset comes last: a
large upload holds no lock for long, and one that is broken off shows nothing. What it leaves, a later one removes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from featurespeed_service.store.database import Database
from featurespeed_service.store.schema import LOCAL_TENANT, dataset_chunks, datasets

CHUNK_BYTES = 2 * 2**20
"""About a hundredth of a second of SQLite's write lock."""
ABANDONED_SECONDS = 3600.0
"""Chunks of an upload that is older than this and shows no dataset belong to nobody."""


@dataclass(frozen=True)
class StoredDataset:
    """A dataset that is stored completely; ``facts`` is JSON, what was found when it was checked."""

    tenant: str
    sha256: str
    size: int
    facts: str
    upload: str


class DatasetStore:
    """The datasets of one tenant, by the SHA-256 of their content. Safe to call from several threads and processes."""

    def __init__(self, database: Database, tenant: str | None = None) -> None:
        self._database = database
        self._tenant = tenant or LOCAL_TENANT

    def add(self, sha256: str, facts: str, content: BinaryIO) -> bool:
        """Store a file that has this SHA-256 and has passed its checks; whether it is new."""
        self.drop_abandoned()
        if self.find(sha256) is not None:
            return False
        upload = secrets.token_hex(16)
        size = 0
        for number, piece in enumerate(iter(lambda: content.read(CHUNK_BYTES), b"")):
            size += len(piece)
            values = {"upload": upload, "number": number, "created_at": self._database.clock(), "data": piece}
            with self._database.writing() as connection:
                connection.execute(insert(dataset_chunks).values(values))
        values = {"tenant": self._tenant, "sha256": sha256, "size": size, "facts": facts, "upload": upload}
        try:
            with self._database.writing() as connection:
                connection.execute(insert(datasets).values(created_at=self._database.clock(), **values))
        except IntegrityError:  # the same one at the same time: the other upload was first
            self._drop([upload])
            return False
        return True

    def find(self, sha256: str) -> StoredDataset | None:
        """The dataset, without its content."""
        columns = [datasets.c[name] for name in StoredDataset.__dataclass_fields__]
        query = select(*columns).where(datasets.c.tenant == self._tenant, datasets.c.sha256 == sha256)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return StoredDataset(**row) if row is not None else None

    def read(self, dataset: StoredDataset) -> Iterator[bytes]:
        """The content in pieces of at most CHUNK_BYTES, each read for itself; raises LookupError if it is gone."""
        left, number = dataset.size, 0
        while left > 0:
            of_upload = (dataset_chunks.c.upload == dataset.upload, dataset_chunks.c.number == number)
            with self._database.reading() as connection:
                piece = connection.execute(select(dataset_chunks.c.data).where(*of_upload)).scalar_one_or_none()
            if piece is None:
                raise LookupError(f"dataset {dataset.sha256} of {dataset.tenant} has lost its piece {number}")
            yield bytes(piece)
            left, number = left - len(piece), number + 1

    def delete(self, sha256: str) -> bool:
        """Remove a dataset; whether it was there."""
        found = self.find(sha256)
        if found is None:
            return False
        with self._database.writing() as connection:
            connection.execute(delete(datasets).where(datasets.c.upload == found.upload))
        self._drop([found.upload])
        return True

    def drop_abandoned(self, older_seconds: float = ABANDONED_SECONDS) -> int:
        """Remove what uploads of any tenant that were broken off have left; how many uploads that were."""
        before = self._database.clock() - round(older_seconds * 1e6)
        first = (dataset_chunks.c.number == 0, dataset_chunks.c.created_at < before)
        shown = select(datasets.c.upload)
        query = select(dataset_chunks.c.upload).where(*first, dataset_chunks.c.upload.not_in(shown))
        with self._database.reading() as connection:
            abandoned = list(connection.execute(query).scalars())
        self._drop(abandoned)
        return len(abandoned)

    def _drop(self, uploads: Iterable[str]) -> None:
        for upload in uploads:
            with self._database.writing() as connection:
                connection.execute(delete(dataset_chunks).where(dataset_chunks.c.upload == upload))
