"""Whose turn it is, and what fits where: the rules by themselves."""

from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest

from featurespeed_service.dispatch.fair_share import LARGE_JOB_CELLS, Held, claim_order, held_by_tenant, in_turn
from featurespeed_service.dispatch.shares import GIB, Capacity, Node, Share
from tests.service.specs import request


@dataclass
class Job:
    name: str
    tenant: str
    cells_total: int
    cells_running: int = 0

    @property
    def has_waiting(self):
        return self.cells_running < self.cells_total


def started(jobs, number):
    """Names of the jobs that get the next cells."""
    names = []
    for job in islice(in_turn(jobs), number):
        job.cells_running += 1
        names.append(job.name)
    return names


def test_tenants_share_whatever_the_number_of_their_jobs():
    jobs = [Job(f"big {n}", "big", 640) for n in range(16)] + [Job("small", "other", 3)]
    assert started(jobs, 40).count("small") == 3
    big = [Job("big", "big", 640, cells_running=2), Job("small", "other", 3)]
    assert started(big, 3) == ["small", "small", "big"]


def test_small_jobs_of_a_tenant_go_first_among_equals():
    assert started([Job("large", "t", 640), Job("small", "t", 2)], 5) == ["small", "large", "small", "large", "large"]
    assert started([Job("done", "t", 0), Job("last", "t", 1)], 5) == ["last"]


def test_claims_are_in_turn_and_bounded():
    held = {"a": Held(jobs=3, large=1), "b": Held(jobs=8, large=2)}
    assert claim_order(["b", "a", "c"], held, slots=4) == [("c", None), ("a", None)]  # b has its 2 × 4
    assert claim_order(["a"], {"a": Held(jobs=4, large=4)}, slots=4) == [("a", LARGE_JOB_CELLS)]
    crowd = [f"tenant {number:03}" for number in range(100)]
    assert claim_order(crowd, {"tenant 000": Held(jobs=2)}, slots=4)[-1] == ("tenant 099", None)
    assert "tenant 000" not in dict(claim_order(crowd, {"tenant 000": Held(jobs=2)}, slots=4))
    jobs = [Job("1", "a", 640), Job("2", "a", 1), Job("3", "b", 1)]
    assert held_by_tenant(jobs) == {"a": Held(2, 1), "b": Held(1, 0)}


def test_the_store_claims_in_order(store, clock):
    for tenant, seeds in [("busy", 64), ("busy", 64), ("busy", 2), ("quiet", 1)]:
        store.of_tenant(tenant).submit(request(seeds=tuple(range(seeds))))
        clock.advance(1)
    held, seen = {}, []
    while claim := store.claim("d", lambda waiting: claim_order(waiting, held, slots=1)):
        has, cells = held.get(claim.tenant, Held()), claim.job.progress.cells_total
        held[claim.tenant] = Held(has.jobs + 1, has.large + (cells > LARGE_JOB_CELLS))
        seen.append((claim.tenant, cells))
    assert seen == [("busy", 64), ("quiet", 1), ("busy", 2)]  # the second large one waits
    clock.advance(60)  # an expired lease is found by its tenant too
    assert store.claim("e", lambda waiting: [(tenant, None) for tenant in sorted(waiting)]).tenant == "busy"
    assert store.claim("e", lambda waiting: [("quiet", None)]).tenant == "quiet"
    assert store.claim("e", lambda waiting: []) is None


GPU_NODE, CPU_NODE = Node(16, 2), Node(8)


@pytest.mark.parametrize(
    ("gib", "per_cell", "gpu_gib", "share"),
    [
        (0.1, None, 80, Share(0.4, 0.05)),
        (20, None, 80, Share(1.0, 0.4)),
        (70, None, 80, Share(1.0, 1.0)),
        (1, None, None, Share(1.0, 1.0)),
        (1, 0.25, 80, Share(1.0, 0.25)),
        (1, 0, 80, Share(1.0, 0.0)),
    ],
)
def test_shares_of_a_gpu(gib, per_cell, gpu_gib, share):
    capacity = Capacity((GPU_NODE, CPU_NODE), gpu_gib and gpu_gib * GIB, per_cell)
    assert capacity.share(round(gib * GIB)) == share
    assert capacity.lack(share, round(gib * GIB)) is None


def test_cells_ask_for_gpus_that_an_autoscaler_may_bring():
    none = Capacity((Node(4),), gpu_bytes=15 * GIB, gpus_may_come=True)
    assert none.share(GIB) == Share(0.1, 0.1)
    assert Capacity((Node(4),), gpu_bytes=15 * GIB).share(GIB) == Share()
    assert Capacity((), gpus_per_cell=0.25, gpus_may_come=True).share(GIB) == Share(0.25, 0.25)
    assert Capacity((), gpus_per_cell=0, gpus_may_come=True).share(GIB) == Share()


def test_slots_count_nodes_one_by_one():
    capacity = Capacity((Node(4, 1), Node(4, 1), Node(3)), None, 0.4)
    assert capacity.slots(capacity.share(0)) == 4  # two a GPU, though 2 / 0.4 = 5
    assert Capacity((Node(1.5), Node(1.5))).most == 2


def test_room_for_cells_of_several_shares_and_a_bounded_surplus():
    capacity, small, whole = Capacity((GPU_NODE,), 80 * GIB), Share(0.4, 0.05), Share(1.0, 1.0)
    assert capacity.has_room(Counter({small: 39}), small)
    assert not capacity.has_room(Counter({small: 40}), small)
    assert capacity.has_room(Counter({small: 20}), whole)
    assert not capacity.has_room(Counter({small: 21}), whole)
    assert capacity.has_room(Counter({small: 49}), small, surplus=10)
    assert not capacity.has_room(Counter({small: 50}), small, surplus=10)
    nowhere = Capacity(())
    assert not nowhere.has_room(Counter(), small)
    assert nowhere.has_room(Counter({small: 9}), small, surplus=10)
    assert not nowhere.has_room(Counter({small: 10}), small, surplus=10)


def test_what_fits_no_node_is_told_with_need_and_largest_node():
    both = Capacity((GPU_NODE, CPU_NODE), 80 * GIB, gpus_per_cell=4)
    assert (
        both.lack(both.share(0), 0)
        == "a cell needs 1 CPU and 4 GPU; the largest node of the cluster has 16 CPU and 2 GPU"
    )
    huge = Capacity((GPU_NODE,), 40 * GIB)
    assert huge.lack(huge.share(50 * GIB), 50 * GIB) == (
        "a cell needs 50.00 GiB of a GPU by estimate; the cluster's have 40.00 GiB"
    )
    assert Capacity(()).lack(Share(), 0) == "a cell needs 1 CPU; the cluster has no node"
