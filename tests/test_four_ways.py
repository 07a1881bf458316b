"""Four ways in, one engine: the same numbers for the same seeds, to the last bit."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from featurespeed import AsyncClient, Client, JobFailed
from featurespeed.contract import Report, parse_request
from featurespeed.spec_files import load_spec
from featurespeed_workers import measure, recommend, save_checkpoint
from featurespeed_workers.architectures import base_initialize, build
from featurespeed_workers.data import load
from featurespeed_workers.probes import FIRST_STEP
from tests.service.service_process import ServiceProcess

SEEDS = (4, 0)
SMALLEST_STORE = 75 * 2**20
"""Bytes; Ray takes no less."""
SPECS: dict[str, dict[str, Any]] = {
    "recommend": {
        "kind": "recommend",
        "architecture": {
            "family": "resnet", "input_dim": 64, "width": 32, "depth": 6, "output_dim": 10, "norm": "layernorm"
        },
        "data": {"kind": "digits", "batch_size": 32},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "measurement": {"seeds": list(SEEDS)},
    },
    "refine": {
        "kind": "recommend",
        "architecture": {"family": "mlp", "input_dim": 64, "width": 32, "depth": 4, "output_dim": 10},
        "data": {"kind": "digits", "batch_size": 32},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "scaling": {"refine": {"steps": 20, "seeds": 2}},
        "measurement": {"seeds": list(SEEDS)},
    },
    "refine under mse, one seed": {
        "kind": "recommend",
        "architecture": {"family": "mlp", "input_dim": 64, "width": 32, "depth": 4, "output_dim": 10},
        "data": {"kind": "digits", "batch_size": 32},
        "loss": "mse",
        "optimizer": {"name": "adamw"},
        "scaling": {"refine": {"steps": 10}},
        "measurement": {"seeds": list(SEEDS)},
    },
    "resumed": {
        "kind": "recommend",
        "architecture": {"family": "mlp", "input_dim": 64, "width": 32, "depth": 4, "output_dim": 10},
        "data": {"kind": "digits", "batch_size": 32},
        "loss": "cross_entropy",
        "optimizer": {"name": "adamw", "weight_decay": 0.01},
        "scaling": {"contributions": {"output": 0.5}},
        "measurement": {"seeds": list(SEEDS)},
        "checkpoint": {"path": "training.safetensors"},
    },
    "measure": {
        "kind": "measure",
        "architecture": {
            "family": "transformer", "layers": 2, "width": 16, "heads": 2, "vocab_size": 20, "context_length": 8
        },
        "data": {"kind": "tokens", "batch_size": 4},
        "loss": "cross_entropy",
        "scaling": {"granularity": "tensor", "contributions": {"input": 2.0, "output": 0.5}},
        "measurement": {"seeds": list(SEEDS)},
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Workers of the service compute with one thread; so must everybody who is compared with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    directory = tmp_path_factory.mktemp("service")
    with ServiceProcess(directory, engine="featurespeed_workers.stages", object_store_bytes=SMALLEST_STORE) as service:
        service.wait_ready()
        yield str(service.http.base_url)


def trained(spec: dict[str, Any]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The architecture of a request after some steps of AdamW."""
    request = parse_request({name: value for name, value in spec.items() if name != "checkpoint"})
    source = load(request, dataset=None, dtype=torch.float32, device=torch.device("cpu"))
    model = build(request.architecture, seed=7).module
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002, weight_decay=0.01)
    for step in range(5):
        inputs, targets = source.batch(7, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, optimizer


def command_line(spec: dict[str, Any], *arguments: str) -> Report:
    done = subprocess.run(
        [sys.executable, "-m", "featurespeed", spec["kind"], "-", "--json", *arguments],
        input=json.dumps(spec), text=True, capture_output=True, check=True, timeout=120,
        env={**os.environ, "FEATURESPEED_THREADS": "1"},
    )  # fmt: skip
    return Report.model_validate_json(done.stdout)


def in_python(spec: dict[str, Any]) -> Report:
    """The engine on models built by hand, as on a module of the user's own."""
    request = parse_request(load_spec(spec).document)
    source = load(request, dataset=None, dtype=torch.float32, device=torch.device("cpu"))

    def model(seed: int):
        network = build(request.architecture, seed=seed)
        if request.kind == "recommend":
            base_initialize(network, seed=seed)
        return network

    def batches(seed: int):
        for_closed_form = (source.batch(seed, step) for step in range(4))
        return chain(for_closed_form, (source.batch(seed, FIRST_STEP + step) for step in count()))

    scaling = request.scaling
    options = {
        "loss": request.loss,
        "optimizer": request.optimizer,
        "contributions": scaling.contributions,
        "granularity": scaling.granularity,
        "seeds": SEEDS,
    }
    if request.kind == "measure":
        return measure(model, batches, **options)
    if request.checkpoint is not None:
        own, optimizer = trained(spec)
        options |= {"optimizer": optimizer, "blocks": list(request.architecture.block_names)}
        return recommend(own, batches, checkpoint=True, **options)
    return recommend(model, batches, refine=scaling.refine, **options)


async def asynchronous(address: str, spec: dict[str, Any]) -> Report:
    async with AsyncClient(address) as client:
        return await {"measure": client.measure, "recommend": client.recommend}[spec["kind"]](spec)


def numbers(report: Report) -> dict[str, Any]:
    return report.model_dump(exclude={"provenance"})


def without_ratios(found: dict[str, Any]) -> dict[str, Any]:
    advice = dict(found["recommendation"])
    for several in ("blocks", "parameters"):
        advice[several] = [{**one, "init_ratio": None} for one in advice[several]]
    return {**found, "recommendation": advice}


@pytest.mark.parametrize("case", SPECS)
def test_the_same_numbers_whichever_way(case: str, address: str, tmp_path: Path) -> None:
    spec = dict(SPECS[case])
    if "checkpoint" in spec:
        spec["checkpoint"] = {"path": str(tmp_path / "training.safetensors")}
        save_checkpoint(tmp_path / "training.safetensors", *trained(spec))
    with Client(address) as client:
        over_http = {"measure": client.measure, "recommend": client.recommend}[spec["kind"]](spec)
    reports = {
        "command line, in-process": command_line(spec),
        "command line, server": command_line(spec, "--server", address),
        "AsyncClient": asyncio.run(asynchronous(address, spec)),
        "Python": in_python(spec),
    }
    expected = numbers(over_http)
    names = parse_request(load_spec(spec).document).architecture.block_names
    assert [layer["name"] for layer in expected["measurements"][0]["layers"]] == list(names)
    if case.startswith("refine"):
        assert len(expected["recommendation"]["refinement"]["probes"]) == 5
    for way, report in reports.items():
        found = numbers(report)
        if case == "resumed" and way == "Python":  # which compares with the weights as they are
            found, expected = without_ratios(found), without_ratios(expected)
        elif spec["kind"] == "recommend" and way == "Python":  # before is the given model
            assert found.pop("before") is not None
            assert found["properties"].pop("before") is not None
            expected.pop("before")
            expected["properties"].pop("before")
        assert found == expected, way
        assert report.provenance.seeds == SEEDS
        assert report.provenance.threads == 1


def test_the_same_numbers_from_a_dataset_that_ray_cannot_hold_in_memory(address: str, tmp_path: Path) -> None:
    rows, path = 330_000, tmp_path / "large.safetensors"
    inputs = np.random.default_rng(0).standard_normal((rows, 64), dtype=np.float32)
    save_file({"inputs": inputs, "targets": np.arange(rows) % 10}, path)
    assert path.stat().st_size > SMALLEST_STORE
    spec = SPECS["recommend"] | {"data": {"kind": "dataset", "path": str(path), "batch_size": 32}}
    here, there = command_line(spec), command_line(spec, "--server", address)
    assert numbers(here) == numbers(there)
    assert here.provenance.seeds == SEEDS


def test_a_checkpoint_of_another_architecture_fails_the_job_by_tensor(address: str, tmp_path: Path) -> None:
    spec = SPECS["resumed"] | {"checkpoint": {"path": str(tmp_path / "training.safetensors")}}
    save_checkpoint(tmp_path / "training.safetensors", *trained(spec))
    wider = {**spec, "architecture": {**spec["architecture"], "output_dim": 11}}
    with Client(address) as client, pytest.raises(JobFailed) as caught:
        client.recommend(wider)
    assert caught.value.job.error.type == "invalid-spec"
    assert "checkpoint.output.weight: shape must be [11, 32] (got [10, 32])" in caught.value.job.error.detail
