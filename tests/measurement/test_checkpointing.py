"""Activation checkpointing, reentrant and not: the numbers are those of the model without it."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from featurespeed_workers import FeatureSpeedMonitor, measure, recommend
from featurespeed_workers.eager import as_written
from featurespeed_workers.losses import own_loss
from tests.measurement.identity import same

BLOCKS = ["first", "layers.0", "layers.1", "layers.2", "last"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.down(nn.functional.dropout(torch.relu(self.up(self.norm(x))), 0.2))


class Model(nn.Module):
    """Cut nodes lie inside of what is checkpointed; the last two layers are one segment."""

    def __init__(self, run) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.run = run
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.layers[0], self.first(x))
        return self.last(self.run(lambda y: self.layers[2](self.layers[1](y)), x))


def directly(function, x: Tensor) -> Tensor:
    return function(x)


def data(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 6, generator=generator).double(), torch.randint(0, 3, (10,), generator=generator))
        for _ in range(count)
    ]


def kept(report):
    return report.measurements, report.properties, report.recommendation, report.stability, report.warnings


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["exact", "double_backward", "central_difference", "finite_difference"])
def test_measurements_are_those_without(reentrant: bool, method: str) -> None:
    model = Model(functools.partial(checkpoint, use_reentrant=reentrant))
    found, plain = (measure(m, data(), blocks=BLOCKS, method=method, stability=True) for m in (model, Model(directly)))
    assert kept(found) == kept(plain)
    assert found.measurements[0].method == method
    assert found.measurements[0].formula_residual < (1e-12 if method in ("exact", "double_backward") else 1e-6)
    assert model.layers[0].runs > sum(m.runs for m in Model(directly).layers)  # segments were run again


@pytest.mark.parametrize("reentrant", [False, True])
def test_recommendations_and_probes_are_those_without(reentrant: bool) -> None:
    model = Model(functools.partial(checkpoint, use_reentrant=reentrant))
    before = [p.clone() for p in model.parameters()]
    found, plain = (recommend(m, data(), blocks=BLOCKS, optimizer="sgd", refine=5) for m in (model, Model(directly)))
    assert kept(found) == kept(plain)
    assert same(before, [p.clone() for p in model.parameters()])


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_are_found_and_a_training_is_not_disturbed(reentrant: bool) -> None:
    records = []

    def run(monitored: bool) -> list[Tensor]:
        model = Model(functools.partial(checkpoint, use_reentrant=reentrant))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        monitor = FeatureSpeedMonitor(model, optimizer, to=records.append, every=1)
        torch.manual_seed(2)
        for x, y in data(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if monitored:
                monitor.step(x, y)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert same(run(True), run(False))
    assert [(record.error, record.method) for record in records] == [(None, "exact")] * 4
    assert [block.name for block in records[0].blocks] == BLOCKS


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_transformers_own_checkpointing() -> None:
    """Which makes the embedding's output require a gradient in every pass, forward mode's too."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=11, n_positions=8, tie_word_embeddings=False, use_cache=False
    )
    model, tokens = GPT2LMHeadModel(config).double().train(), torch.randint(0, 11, (4, 8))
    batches = [({"input_ids": tokens, "labels": tokens}, None)]
    asked = {"loss": own_loss, "blocks": {"transformer.drop": ["transformer.wte", "transformer.wpe"],
                                          "transformer.h.0": [], "transformer.h.1": [],
                                          "lm_head": ["transformer.ln_f"]}}  # fmt: skip
    plain = measure(model, batches, **asked)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert kept(measure(model, batches, **asked)) == kept(plain)
    assert plain.measurements[0].method == "exact"
    assert plain.measurements[0].formula_residual < 1e-12


def test_threads_leave_reentrant_checkpointing_as_it_was() -> None:
    """One that begins before another has ended must not take the other's stand-in for what torch has."""
    before, within, over = torch.utils.checkpoint.CheckpointFunction, threading.Event(), threading.Event()

    def other() -> None:
        with as_written():
            within.set()
            over.wait(5)

    thread = threading.Thread(target=other)
    with as_written():
        thread.start()
        within.wait(0.2)
    over.set()
    thread.join()
    assert within.is_set()
    assert torch.utils.checkpoint.CheckpointFunction is before
