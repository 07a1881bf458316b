"""The datasets and checkpoints of running jobs on the cluster: each is sent once, however many jobs use it."""

from __future__ import annotations

from weakref import WeakValueDictionary

from featurespeed.contract import Dataset, FieldError, JobRequest, SpecError
from featurespeed_service.dispatch.cluster import Cluster
from featurespeed_service.store.datasets import FileKind
from featurespeed_service.store.interface import LeaseStore
from featurespeed_workers.ray_tasks import SentDataset


class SentDatasets:
    """Sends files when they are first needed; one that no job holds any more leaves the cluster by itself."""

    def __init__(self, store: LeaseStore, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster
        self._sent: WeakValueDictionary[tuple[str, FileKind, str], SentDataset] = WeakValueDictionary()

    def of(self, tenant: str, request: JobRequest) -> dict[FileKind, SentDataset]:
        """The files that a request names; raises SpecError if one has been removed."""
        files: dict[FileKind, SentDataset] = {}
        if isinstance(request.data, Dataset):
            files["dataset"] = self._one(tenant, "dataset", request.data.sha256, "data.sha256")
        if request.checkpoint is not None:
            files["checkpoint"] = self._one(tenant, "checkpoint", request.checkpoint.sha256, "checkpoint.sha256")
        return files

    def _one(self, tenant: str, kind: FileKind, sha256: str, field: str) -> SentDataset:
        if (sent := self._sent.get((tenant, kind, sha256))) is not None:
            return sent
        stored = self._store.datasets_of(tenant).of_kind(kind)
        found = stored.find(sha256)
        if found is None:
            raise SpecError([FieldError(field=field, value=sha256, bound=f"the {kind} has been removed")])
        sent = self._cluster.send(found, stored.read(found))
        self._sent[tenant, kind, sha256] = sent
        return sent
