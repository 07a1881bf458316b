"""Datasets in the database, and on their way to whoever computes."""

import hashlib
import io
import os
import threading

import numpy as np
import pytest
from safetensors.numpy import save
from sqlalchemy import func, select

from featurespeed_service.settings import DAY_SECONDS, Settings
from featurespeed_service.store import datasets as module
from featurespeed_service.store.schema import dataset_chunks
from featurespeed_service.store.sql import open_store
from featurespeed_service.store.uploads import publish
from featurespeed_workers import dataset_cache
from featurespeed_workers.dataset_cache import cached_dataset
from tests.service.specs import request


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)


def content(number=0, size=4500):
    data = np.random.default_rng(number).bytes(size)
    return data, hashlib.sha256(data).hexdigest()


def test_a_dataset_is_read_as_it_was_written_by_its_tenant_alone(store):
    data, sha256 = content()
    mine, other = store.of_tenant("mine").datasets, store.of_tenant("other").datasets
    assert [mine.add(sha256, "{}", io.BytesIO(data)) for _ in range(2)] == [True, False]
    found = mine.find(sha256)
    assert (found.size, found.facts) == (4500, "{}")
    pieces = list(store.datasets_of("mine").read(found))
    assert (b"".join(pieces), max(map(len, pieces))) == (data, 1000)
    assert other.find(sha256) is None
    assert other.add(sha256, "{}", io.BytesIO(data))
    assert mine.drop(found)
    assert not mine.drop(found)
    assert b"".join(other.read(other.find(sha256))) == data


def test_the_same_bytes_may_be_a_dataset_and_a_checkpoint(store, clock):
    data, sha256 = content()
    datasets, checkpoints = store.datasets, store.datasets.of_kind("checkpoint")
    assert datasets.add(sha256, "{}", io.BytesIO(data))
    assert checkpoints.find(sha256) is None
    assert checkpoints.add(sha256, "{}", io.BytesIO(data))
    assert [s.find(sha256).kind for s in (datasets, checkpoints)] == ["dataset", "checkpoint"]
    assert datasets.drop(datasets.find(sha256))
    assert b"".join(checkpoints.read(checkpoints.find(sha256))) == data
    clock.advance(32 * DAY_SECONDS)
    assert store.prune_datasets(seconds=30 * DAY_SECONDS) == 1
    assert checkpoints.find(sha256) is None


def test_datasets_that_nobody_uses_are_deleted(store, clock):
    contents = [content(number) for number in range(4)]
    for data, sha256 in contents:
        store.datasets.add(sha256, "{}", io.BytesIO(data))
    _, (_, uploaded), (_, named), (other_data, other) = contents
    store.of_tenant("busy").datasets.add(other, "{}", io.BytesIO(other_data))
    waits = store.of_tenant("busy").submit(request())
    clock.advance(29.5 * DAY_SECONDS)
    assert publish(store.datasets, uploaded, None) is False  # known: the file is not even opened
    assert store.datasets.use(named).sha256 == named
    clock.advance(1.4 * DAY_SECONDS)
    assert store.prune_datasets(seconds=30 * DAY_SECONDS) == 0
    clock.advance(0.2 * DAY_SECONDS)
    assert [store.prune_datasets(seconds=30 * DAY_SECONDS, limit=1) for _ in range(3)] == [1, 1, 0]
    left = [store.datasets.find(sha256) is not None for _, sha256 in contents]
    assert left == [False, True, True, False]
    assert store.of_tenant("busy").datasets.find(other)  # its job might need it
    assert [store.drop_orphans() for _ in range(4)] == [4, 4, 2, 0]
    assert chunks_of(store) == 3 * 5
    store.cancel(waits.id)
    assert store.prune_datasets(seconds=30 * DAY_SECONDS) == 1


def test_a_dataset_that_is_used_meanwhile_is_not_deleted(store, clock):
    data, sha256 = content()
    store.datasets.add(sha256, "{}", io.BytesIO(data))
    clock.advance(40 * DAY_SECONDS)
    (found,) = store.datasets.unused(30 * DAY_SECONDS, 10)
    store.datasets.use(sha256)
    assert not store.datasets.drop(found)
    assert b"".join(store.datasets.read(store.datasets.find(sha256))) == data


def chunks_of(store):
    with store._database.reading() as connection:
        return connection.execute(select(func.count()).select_from(dataset_chunks)).scalar()


class Broken(io.BytesIO):
    """A file that can only be read half."""

    def read(self, size=-1):
        if self.tell() >= 2000:
            raise OSError("the disk is gone")
        return super().read(size)


def test_an_upload_that_breaks_off_shows_nothing_and_is_cleaned_up(store, clock):
    data, sha256 = content()
    with pytest.raises(OSError, match="disk"):
        store.datasets.add(sha256, "{}", Broken(data))
    assert store.datasets.find(sha256) is None
    assert store.datasets.add(sha256, "{}", io.BytesIO(data))
    clock.advance(3599)
    assert store.drop_orphans() == 0  # it might still be at it
    clock.advance(2)
    assert [store.drop_orphans() for _ in range(2)] == [2, 0]
    assert b"".join(store.datasets.read(store.datasets.find(sha256))) == data


def test_the_same_dataset_from_many_at_once_is_stored_once(store, clock):
    data, sha256 = content(size=20_000)
    barrier, new, faults = threading.Barrier(4), [], []

    def add():
        barrier.wait()
        try:
            new.append(store.datasets.add(sha256, "{}", io.BytesIO(data)))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(new), faults) == ([False, False, False, True], [])
    assert b"".join(store.datasets.read(store.datasets.find(sha256))) == data
    assert store.drop_orphans() == 0
    clock.advance(3601)
    while store.drop_orphans():  # what the losers have left
        pass
    assert b"".join(store.datasets.read(store.datasets.find(sha256))) == data
    assert chunks_of(store) == 20


def test_uploads_of_before_are_moved_into_the_database(tmp_path):
    settings = Settings(data_dir=tmp_path)
    settings.datasets_dir.mkdir()
    good = save({"inputs": np.ones((4, 8), np.float32), "targets": np.ones((4, 2), np.float32)})
    sha256 = hashlib.sha256(good).hexdigest()
    (settings.datasets_dir / f"{sha256}.safetensors").write_bytes(good)
    damaged = settings.datasets_dir / f"{'0' * 64}.safetensors"
    damaged.write_bytes(good)
    for _ in range(2):
        store = open_store(settings)
        assert b"".join(store.datasets.read(store.datasets.find(sha256))) == good
        assert list(settings.datasets_dir.iterdir()) == [damaged]
        store.close()


def fetched(directory, data, limit=10**9, log=None):
    def fetch():
        if log is not None:
            log.append(1)
        return [data[:1000], data[1000:]]

    return cached_dataset(directory, hashlib.sha256(data).hexdigest(), len(data), fetch, limit)


def test_a_node_fetches_a_dataset_once(tmp_path):
    data, _ = content()
    log = []
    for _ in range(3):
        with fetched(tmp_path / "cache", data, log=log) as path:
            assert path.read_bytes() == data
    assert len(log) == 1
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_many_that_need_a_dataset_at_once_fetch_it_once(tmp_path):
    data, _ = content()
    log, found, barrier = [], [], threading.Barrier(8)

    def use():
        barrier.wait()
        with fetched(tmp_path / "cache", data, log=log) as path:
            found.append(path.read_bytes() == data)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(log)) == ([True] * 8, 1)


def test_what_was_used_longest_ago_makes_room_but_nothing_that_is_in_use(tmp_path):
    first, second, third = (content(number)[0] for number in range(3))
    with fetched(tmp_path, first, 9000) as in_use, fetched(tmp_path, second, 9000) as path:
        os.utime(in_use, (1, 1))
        os.utime(path, (2, 2))
    held = fetched(tmp_path, first, 9000)
    with held as oldest:
        os.utime(oldest, (1, 1))
        with fetched(tmp_path, third, 9000):
            assert oldest.read_bytes() == first
            assert sorted(p.stat().st_size for p in tmp_path.glob("*.safetensors")) == [4500, 4500]
    assert not path.exists()


def test_a_dataset_that_is_not_what_its_name_says_is_not_used(tmp_path):
    data, _ = content()
    with pytest.raises(ValueError, match="has the SHA-256"):  # noqa: SIM117
        with cached_dataset(tmp_path, "0" * 64, len(data), lambda: [data], 10**9):
            pass
    assert list(tmp_path.glob(f"*{dataset_cache.PARTIAL}")) == []


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    data, sha256 = content()
    (tmp_path / f"{sha256}{dataset_cache.PARTIAL}").write_bytes(b"half")
    with fetched(tmp_path, data) as path:
        assert path.read_bytes() == data
