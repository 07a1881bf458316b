"""The datasets of running jobs on the cluster: each is sent once, however many jobs and cells use it."""

from __future__ import annotations

from weakref import WeakValueDictionary

from featurespeed.contract import Dataset, FieldError, JobRequest, SpecError
from featurespeed_service.dispatch.cluster import Cluster
from featurespeed_service.store.interface import LeaseStore
from featurespeed_workers.ray_tasks import SentDataset


class SentDatasets:
    """Sends datasets when they are first needed; one that no job holds any more leaves the cluster by itself."""

    def __init__(self, store: LeaseStore, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster
        self._sent: WeakValueDictionary[tuple[str, str], SentDataset] = WeakValueDictionary()

    def of(self, tenant: str, request: JobRequest) -> SentDataset | None:
        """The dataset of a request, ``None`` if it needs none; raises SpecError if it has been removed."""
        if not isinstance(request.data, Dataset):
            return None
        name = (tenant, request.data.sha256)
        if (sent := self._sent.get(name)) is not None:
            return sent
        datasets = self._store.datasets_of(tenant)
        found = datasets.find(request.data.sha256)
        if found is None:
            raise SpecError([FieldError(field="data.sha256", value=name[1], bound="the dataset has been removed")])
        sent = self._cluster.send(found, datasets.read(found))
        self._sent[name] = sent
        return sent
