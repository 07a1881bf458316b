"""What a dispatcher knows of one job."""

from featurespeed_service.dispatch.cluster import CellTask
from featurespeed_service.dispatch.running import RunningJob
from featurespeed_service.dispatch.shares import Share
from featurespeed_workers.ray_tasks import Item
from tests.service import stand_in
from tests.service.specs import request


def test_a_task_that_has_told_its_cell_is_not_to_be_cancelled(store):
    """It ends by itself, perhaps just then; Ray's driver may abort if it is cancelled at that moment."""
    store.submit(request(seeds=(0, 1)))
    job = RunningJob(store.claim("d"), stand_in)
    first, second = CellTask(None, Share()), CellTask(None, Share())
    for task in (first, second):
        job.start(job.next_cell(), task)
    job.hear(first, Item("cell", "0.5"))
    assert job.unfinished_tasks() == [second]
    job.hear(second, Item("cell", "0.5"))
    assert job.unfinished_tasks() == []
