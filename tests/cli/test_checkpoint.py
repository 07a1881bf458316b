"""A specification that names a checkpoint: the command gives the numbers of the running objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from featurespeed.contract import JobRequest, Report, parse_request
from featurespeed.spec_files import file_sha256, load_spec
from featurespeed_workers import recommend, save_checkpoint
from featurespeed_workers.architectures import build
from featurespeed_workers.data import Source, load
from featurespeed_workers.losses import loss_function
from tests.cli.command import refused, run

SPEC: dict[str, Any] = {
    "architecture": {
        "family": "transformer", "layers": 2, "width": 16, "heads": 2, "vocab_size": 20, "context_length": 8,
    },
    "data": {"kind": "tokens", "batch_size": 4},
    "loss": "cross_entropy",
    "optimizer": {"name": "adamw", "weight_decay": 0.01},
    "scaling": {"contributions": {"input": 2.0}},
    "measurement": {"seeds": [3, 1], "dtype": "float64"},
}  # fmt: skip


def source_of(request: JobRequest) -> Source:
    return load(request, dataset=None, dtype=torch.float64, device=torch.device("cpu"))


def trained(request: JobRequest, path: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The architecture after some steps; written to a file."""
    model = build(request.architecture, seed=7).module.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002, weight_decay=0.01)
    for step in range(5):
        inputs, targets = source_of(request).batch(100, step)
        optimizer.zero_grad()
        loss_function(request.loss)(model(inputs), targets).backward()
        optimizer.step()
    save_checkpoint(path, model, optimizer)
    return model, optimizer


@pytest.fixture
def asked(tmp_path: Path):
    """The file of a specification, beside its checkpoint."""
    model, optimizer = trained(parse_request({**SPEC, "kind": "recommend"}), tmp_path / "ckpt.safetensors")
    document = {**SPEC, "checkpoint": {"path": "ckpt.safetensors"}}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    return tmp_path / "spec.json", model, optimizer


def test_the_command_gives_the_numbers_of_the_running_objects(asked, tmp_path: Path) -> None:
    spec, model, optimizer = asked
    done = run("recommend", spec, "--out", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "scales           kept, those of the checkpoint" in done.stdout
    assert "warm-up" not in done.stdout
    found = Report.model_validate_json((tmp_path / "report.json").read_text())
    request = parse_request(load_spec(spec, "recommend").document)
    source = source_of(request)
    expected = recommend(
        model, lambda seed: [source.batch(seed, step) for step in range(4)],
        optimizer=optimizer, blocks=list(request.architecture.block_names), contributions={"input": 2.0},
        seeds=(3, 1), checkpoint=True,
    )  # fmt: skip
    for ours, theirs in zip(found.recommendation.blocks, expected.recommendation.blocks, strict=True):
        assert (ours.name, ours.lr) == (theirs.name, pytest.approx(theirs.lr, rel=1e-9))
        assert ours.init_std == pytest.approx(theirs.init_std, rel=1e-9)
        assert ours.lr_over_seeds.values == pytest.approx(theirs.lr_over_seeds.values, rel=1e-9)
    for name in ("SP", "FL", "LD", "BC", "FS", "BS", "S"):
        for when in ("before", "after"):
            ours, theirs = (getattr(getattr(r.properties, when), name) for r in (found, expected))
            assert ours.value == pytest.approx(theirs.value, rel=1e-6), (when, name)
            assert ours.block == theirs.block
    assert found.provenance.spec_sha256 == request.sha256
    assert found.recommendation.scales == "kept"
    assert request.checkpoint.sha256 == file_sha256(tmp_path / "ckpt.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("output.weight", torch.ones(3, 16), "checkpoint.output.weight: shape must be [20, 16] (got [3, 16])"),
        ("extra", torch.ones(1), "checkpoint.extra: the model has no parameter or buffer of this name (got [1])"),
        ("optimizer.state.extra.step", torch.ones(()), "the model has no parameter 'extra'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(asked, name, tensor, message, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.safetensors"
    save_file({**load_file(path), name: tensor}, path)
    assert message in _refused_on_the_way(asked[0])


def test_the_optimizer_asked_about_must_be_that_of_the_file(asked) -> None:
    spec = asked[0]
    document = json.loads(spec.read_text())
    spec.write_text(json.dumps({**document, "optimizer": {"name": "sgd", "momentum": 0.9}}))
    assert "the optimizer keeps momentum_buffer of this parameter" in _refused_on_the_way(spec)


def test_what_has_no_file(asked) -> None:
    spec = asked[0]
    document = json.loads(spec.read_text())
    for checkpoint, message in (
        ({"sha256": "0" * 64}, "checkpoint.sha256: without a server the checkpoint must be a file"),
        ({"path": "nowhere"}, "checkpoint.path: No such file"),
        ({"path": 3}, "checkpoint.path: Input should be the path of a safetensors file (got 3)"),
        ({"path": "ckpt.safetensors", "sha256": "0"}, "checkpoint.path: path and sha256 exclude each other"),
        ("ckpt.safetensors", "checkpoint: Input should be an object"),
    ):
        spec.write_text(json.dumps({**document, "checkpoint": checkpoint}))
        assert message in refused(run("recommend", spec))


def _refused_on_the_way(spec: Path) -> str:
    """The error of a command that had begun to compute: what it told of its progress comes before."""
    done = run("recommend", spec)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line
