"""Uploaded datasets and checkpoints in the database, where every API and every dispatcher can read them.

The content lies in chunks, each written in a transaction of its own, and the row that shows a dataset comes last: a
large upload holds no lock for long, and one that is broken off shows nothing. What it leaves, or a dataset that is
removed, goes piece by piece (``drop_orphans``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from sqlalchemy import Select, delete, exists, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from featurespeed_service.settings import DAY_SECONDS
from featurespeed_service.store.database import Database
from featurespeed_service.store.schema import LOCAL_TENANT, dataset_chunks, datasets, jobs

CHUNK_BYTES = 2 * 2**20
"""About a hundredth of a second of SQLite's write lock."""
DAY = DAY_SECONDS * 1_000_000
"""Microseconds. A use is noted only if the last one was so long ago: not every job writes."""
ORPHAN_SECONDS = 3600.0
"""Chunks that are older than this and show no dataset belong to nobody."""

FileKind = Literal["dataset", "checkpoint"]
"""What an uploaded file is; the same bytes may be both."""


@dataclass(frozen=True)
class StoredDataset:
    """A file that is stored completely; ``facts`` is JSON, what was found when it was checked."""

    tenant: str
    kind: FileKind
    sha256: str
    size: int
    facts: str
    upload: str
    used_at: int


class DatasetStore:
    """The files of one kind of a tenant, by the SHA-256 of their content: datasets, unless :meth:`of_kind` is asked.

    Safe to call from several threads and processes.
    """

    def __init__(self, database: Database, tenant: str | None = None, kind: FileKind = "dataset") -> None:
        self._database = database
        self._tenant = tenant or LOCAL_TENANT
        self.kind: FileKind = kind

    def of_kind(self, kind: FileKind) -> DatasetStore:
        """The same tenant's files of that kind."""
        return DatasetStore(self._database, self._tenant, kind)

    def add(self, sha256: str, facts: str, content: BinaryIO) -> bool:
        """Store a file that has this SHA-256 and has passed its checks; whether it is new."""
        if self.find(sha256) is not None:
            return False
        upload = secrets.token_hex(16)
        size = 0
        for number, piece in enumerate(iter(lambda: content.read(CHUNK_BYTES), b"")):
            size += len(piece)
            values = {"upload": upload, "number": number, "created_at": self._database.clock(), "data": piece}
            with self._database.writing() as connection:
                connection.execute(insert(dataset_chunks).values(values))
        now = self._database.clock()
        row = StoredDataset(self._tenant, self.kind, sha256, size, facts, upload, used_at=now)
        try:
            with self._database.writing() as connection:
                connection.execute(insert(datasets).values(created_at=now, **vars(row)))
        except IntegrityError:  # the same one at the same time: the other upload was first
            return False
        return True

    def find(self, sha256: str) -> StoredDataset | None:
        """The dataset, without its content."""
        own = (datasets.c.tenant == self._tenant, datasets.c.kind == self.kind)
        query = _select().where(*own, datasets.c.sha256 == sha256)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return StoredDataset(**row) if row is not None else None

    def use(self, sha256: str) -> StoredDataset | None:
        """The dataset, which from now on is kept for as long as one that is new."""
        found, now = self.find(sha256), self._database.clock()
        if found is None or found.used_at > now - DAY:
            return found
        with self._database.writing() as connection:
            is_there = connection.execute(
                update(datasets).where(datasets.c.upload == found.upload).values(used_at=now)
            ).rowcount
        return found if is_there else None

    def read(self, dataset: StoredDataset) -> Iterator[bytes]:
        """The content in pieces of at most CHUNK_BYTES, each read for itself; raises LookupError if it is gone."""
        left, number = dataset.size, 0
        while left > 0:
            of_upload = (dataset_chunks.c.upload == dataset.upload, dataset_chunks.c.number == number)
            with self._database.reading() as connection:
                piece = connection.execute(select(dataset_chunks.c.data).where(*of_upload)).scalar_one_or_none()
            if piece is None:
                raise LookupError(f"{dataset.kind} {dataset.sha256} of {dataset.tenant} has lost its piece {number}")
            yield bytes(piece)
            left, number = left - len(piece), number + 1

    def drop(self, dataset: StoredDataset) -> bool:
        """Remove a dataset, but for its chunks, unless it was used since this was read; whether it was removed."""
        same = (datasets.c.upload == dataset.upload, datasets.c.used_at == dataset.used_at)
        with self._database.writing() as connection:
            return connection.execute(delete(datasets).where(*same)).rowcount > 0

    def unused(self, seconds: float, limit: int) -> list[StoredDataset]:
        """Files of any tenant and kind that nobody has used for so long and a day, and that no job waits for."""
        before = self._database.clock() - round(seconds * 1e6)
        waits = exists().where(
            jobs.c.tenant == datasets.c.tenant,
            jobs.c.status.in_(("queued", "running")),
            jobs.c.created_at <= before,  # a younger one has noted its use
        )
        query = _select().where(datasets.c.used_at <= before - DAY, ~waits).order_by(datasets.c.used_at).limit(limit)
        with self._database.reading() as connection:
            return [StoredDataset(**row) for row in connection.execute(query).mappings()]

    def drop_orphans(self, limit: int = 4) -> int:
        """Remove chunks of any tenant that belong to no dataset; how many. Few at once: each is megabytes to write."""
        before = self._database.clock() - round(ORPHAN_SECONDS * 1e6)
        place = (dataset_chunks.c.upload, dataset_chunks.c.number)
        old = (dataset_chunks.c.created_at < before, dataset_chunks.c.upload.not_in(select(datasets.c.upload)))
        with self._database.reading() as connection:
            orphans = [tuple(row) for row in connection.execute(select(*place).where(*old).limit(limit))]
        if orphans:
            with self._database.writing() as connection:
                connection.execute(delete(dataset_chunks).where(tuple_(*place).in_(orphans)))
        return len(orphans)


def _select() -> Select[Any]:
    return select(*(datasets.c[name] for name in StoredDataset.__dataclass_fields__))
