"""Dispatchers on a Ray of three nodes, all on this machine, with a token, and GPUs that are none.

The head has a CPU, so has another node; the third has two CPUs and, by its word, two GPUs.
"""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from featurespeed.budget import memory_bytes
from featurespeed_service.settings import Settings
from featurespeed_service.store.sql import open_store
from tests.service import stand_in
from tests.service.ray_nodes import RayNodes
from tests.service.service_process import TERMINAL, wait_until
from tests.service.specs import request, spec

COMMAND = [sys.executable, "-m", "featurespeed", "dispatcher"]
GPU_BYTES = 3 * memory_bytes(request(seeds=(0,)))
"""So much that a cell, by its estimate, takes half a GPU."""
RECOVERY_SECONDS = 60
SEEDS, STEPS = 24, 50
"""Of a job long enough that a new node gets some of its cells, each of a second."""
TURN_CELLS = 36
"""A small job ends before large ones of earlier have finished so many cells more."""


THREE = {"num_cpus": 1}, {"num_cpus": 1}, {"num_cpus": 2, "num_gpus": 2}


class Nodes:
    """The cluster."""

    def __init__(self, ray, *resources):
        self.ray = ray
        self.ids = [ray.add(**node) for node in resources]

    def environment(self, directory, **settings):
        chosen = {"engine": "stand_in", "data_dir": directory, "ray_address": self.ray.address} | settings
        chosen = {f"FEATURESPEED_{name.upper()}": str(value) for name, value in chosen.items()}
        return self.ray.environment | chosen


class Dispatcher:
    """A dispatcher with a database of its own."""

    def __init__(self, directory, nodes, **settings):
        self._ray = nodes.ray
        self.store = open_store(Settings(data_dir=directory))
        self._log = (directory / "log").open("w")
        self._process = subprocess.Popen(COMMAND, env=nodes.environment(directory, **settings), stderr=self._log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait(30)
            self._log.close()
            self.store.close()

    def submit(self, asked, tenant="local"):
        return self.store.of_tenant(tenant).submit(asked).id

    def end_of(self, job_id, tenant="local"):
        of = self.store.of_tenant(tenant)
        return wait_until(lambda: (job := of.get(job_id)).status in TERMINAL and job, 150, f"end of {job_id}")

    def run(self, asked):
        """Where the cells of a job ran, which has to succeed."""
        job = self.end_of(self.submit(asked))
        assert job.status == "succeeded", job.error
        return self.places(asked)

    def places(self, asked):
        """(node, device, part of a GPU, which GPU, cell) of each start of a cell."""
        lines = (line.split(maxsplit=5) for line in self._ray.places.read_text().splitlines())
        return [tuple(rest) for sha256, *rest in lines if sha256 == asked.sha256]

    def computed(self, *requests):
        """(SHA-256, cell) of the cells that have been computed."""
        digests = {asked.sha256 for asked in requests}
        lines = (line.split(maxsplit=1) for line in self._ray.computed.read_text().splitlines())
        return [(sha256, cell) for sha256, cell in lines if sha256 in digests]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with RayNodes("a1" * 32, tmp_path_factory.mktemp("ray")) as ray:
        nodes = Nodes(ray, *THREE)
        nodes.head, nodes.other, nodes.with_gpus = nodes.ids
        yield nodes


@pytest.fixture(scope="module")
def on_cpus(nodes, tmp_path_factory):
    """A dispatcher that computes on CPUs alone."""
    with Dispatcher(tmp_path_factory.mktemp("cpus"), nodes, gpus_per_cell=0) as dispatcher:
        yield dispatcher


def test_a_token_that_is_wrong_or_missing_is_told_in_one_line(nodes, tmp_path):
    wrong = {"RAY_AUTH_TOKEN": "b2" * 32, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    none = {"RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}
    commands = [
        subprocess.Popen(COMMAND, env=nodes.environment(tmp_path) | other, stderr=subprocess.PIPE, text=True)
        for other in (wrong, none)
    ]
    told = [command.communicate(timeout=120)[1] for command in commands]
    assert [command.returncode for command in commands] == [2, 2], told
    assert [text.count("\n") for text in told] == [1, 1], told
    assert told[0].startswith(f"featurespeed: the Ray at {nodes.ray.address} refuses our token")
    assert told[1].startswith(f"featurespeed: no token for the Ray at {nodes.ray.address}")


def test_cells_share_a_gpu_by_their_estimate_and_what_fits_none_fails(nodes, on_cpus, tmp_path):
    asked = request(stand_in.MEET, seeds=range(3))
    with Dispatcher(tmp_path, nodes, gpu_memory_bytes=GPU_BYTES, node_wait_seconds=0.5) as dispatcher:
        places = dispatcher.run(asked)
        assert {place[:3] for place in places} == {(nodes.with_gpus, "cuda", "0.5")}
        assert Counter(gpu for _, _, _, gpu, _ in places).most_common(1)[0][1] == 2
        wide = {**spec()["architecture"], "width": 64}
        job = dispatcher.end_of(dispatcher.submit(request(architecture=wide)))
        assert (job.status, job.error.type) == ("failed", "insufficient-resources")
        assert "GiB of a GPU by estimate" in job.error.detail


def test_cells_spread_over_the_nodes_those_with_gpus_last(nodes, on_cpus):
    both = on_cpus.run(request(stand_in.MEET, seeds=range(2)))
    assert {place[:3] for place in both} == {(node, "cpu", "0") for node in (nodes.head, nodes.other)}
    all_four = on_cpus.run(request(stand_in.MEET, seeds=range(4)))
    assert Counter(node for node, *_ in all_four) == {nodes.head: 1, nodes.other: 1, nodes.with_gpus: 2}


def test_a_node_may_die_in_the_middle_of_a_job(nodes, on_cpus, full, report):
    for number in range(5 if full else 1):
        seconds = lose_a_node(nodes, on_cpus, request(number, seeds=range(SEEDS), steps=STEPS))
        report.row("a cell of a node that died is computed elsewhere", f"≤ {RECOVERY_SECONDS} s", f"{seconds:.1f} s")
        assert seconds <= RECOVERY_SECONDS


def lose_a_node(nodes, dispatcher, asked):
    """Seconds from the death of a node until what it computed has started elsewhere."""
    node = nodes.ray.add(num_cpus=1)
    job_id = dispatcher.submit(asked)

    def unfinished():
        done = {cell for _, cell in dispatcher.computed(asked)}
        return next((cell for place, *_, cell in dispatcher.places(asked) if place == node and cell not in done), None)

    lost = wait_until(unfinished, 60, "a cell on the node")
    killed = time.monotonic()
    nodes.ray.kill(node)
    wait_until(lambda: [p for p in dispatcher.places(asked) if p[-1] == lost][1:], 120, "another start")
    seconds = time.monotonic() - killed
    assert dispatcher.end_of(job_id).status == "succeeded"
    [measurement] = json.loads(dispatcher.store.result(job_id).text)["measurements"]
    undisturbed = [stand_in.value_of(asked, seed) for seed in range(SEEDS)]
    assert measurement["loss_over_seeds"]["values"] == undisturbed
    return seconds


def test_large_jobs_hold_up_no_small_one_whoever_it_is_of(on_cpus, report):
    refine = {"steps": 5, "seeds": 64, "factors": [0.125, 0.25, 0.5, 1, 2, 4, 8]}
    fields = {"kind": "recommend", "seeds": range(64), "scaling": {"refine": refine}}
    large = [request(seed, **fields) for seed in range(16)]
    assert {asked.cells_total for asked in large} == {640}
    held = [on_cpus.submit(asked, "a") for asked in large]
    wait_until(lambda: len(on_cpus.computed(*large)) >= 4, 120, "cells of the large jobs")
    try:
        for tenant, seed in (("b", 101), ("a", 102)):
            before = len(on_cpus.computed(*large))
            small = on_cpus.submit(request(seed), tenant)
            assert on_cpus.end_of(small, tenant).status == "succeeded"
            between = len(on_cpus.computed(*large)) - before
            report.row(f"3 cells of tenant {tenant} beside 16 × 640 of a", f"< {TURN_CELLS} cells", f"{between} cells")
            assert 0 < between < TURN_CELLS
    finally:
        for job_id in held:
            on_cpus.store.of_tenant("a").cancel(job_id)
    assert {on_cpus.end_of(job_id, "a").status for job_id in held} == {"cancelled"}


def test_jobs_wait_in_the_queue_while_no_node_computes(tmp_path):
    """As where workers start after the head: what no node holds yet fails no job, nor is it claimed."""
    (tmp_path / "ray").mkdir()
    with RayNodes("c3" * 32, tmp_path / "ray") as ray:
        nodes = Nodes(ray, {"num_cpus": 0})
        with Dispatcher(tmp_path, nodes, node_wait_seconds=0.2) as dispatcher:
            asked = request(5)
            job_id = dispatcher.submit(asked)
            wait_until(lambda: dispatcher.store.last_heartbeat() is not None, 60, "the dispatcher")
            time.sleep(2)
            assert dispatcher.store.get(job_id).status == "queued"
            node = ray.add(num_cpus=1)
            assert {place[0] for place in dispatcher.run(request(6))} == {node}
            assert dispatcher.end_of(job_id).status == "succeeded"
