"""Models that were given to ``torch.compile``: measured as they were written, and still compiled afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from featurespeed_workers import FeatureSpeedMonitor, blocks, measure, recommend
from tests.measurement.identity import same
from tests.measurement.monitored import batches, make_model, make_optimizer, train

# dynamo looks at .grad of whatever it meets
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Backend:
    """Counts how often a graph is compiled, and how often one runs."""

    def __init__(self) -> None:
        self.compiled, self.runs = 0, 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        self.compiled += 1

        def run(*args: object) -> object:
            self.runs += 1
            return graph.forward(*args)

        return run


class WithFunction(nn.Module):
    def __init__(self, inner: nn.Module, backend: Backend) -> None:
        super().__init__()
        self.inner = inner
        self.double = torch.compile(lambda x: x + x, backend=backend)

    def forward(self, x):
        return self.double(self.inner(x)) / 2


def whole(model: nn.Sequential, backend: Backend) -> nn.Module:
    return torch.compile(model, backend=backend)


def a_part(model: nn.Sequential, backend: Backend) -> nn.Module:
    model[1] = torch.compile(model[1], backend=backend)
    return model


class Own(nn.Sequential):
    """Code of torch's own modules is not compiled in place."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def in_place(model: nn.Sequential, backend: Backend) -> nn.Module:
    own = Own(*model)
    own.compile(backend=backend)
    return own


def a_function(model: nn.Sequential, backend: Backend) -> nn.Module:
    model[1] = WithFunction(model[1], backend)
    return model


WAYS = [whole, a_part, in_place, a_function]
NAMES = ["0", "1", "2"]


@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_those_of_the_model_as_it_was_written(way) -> None:
    backend, data = Backend(), list(batches(4))
    compiled = way(make_model(), backend)
    compiled(data[0][0])
    assert list(blocks(compiled, data[0])) == NAMES
    before = backend.compiled, backend.runs
    assert before[0] > 0
    assert before[1] > 0
    for ask in (measure, recommend):
        found, plain = (ask(m, data, optimizer="sgd", blocks=NAMES) for m in (compiled, make_model()))
        assert found.measurements == plain.measurements
        assert found.properties == plain.properties
        if ask is recommend:
            assert found.recommendation.blocks == plain.recommendation.blocks
    assert (backend.compiled, backend.runs) == before  # what was measured is not the compiled code
    compiled(data[0][0])
    assert backend.compiled == before[0]
    assert backend.runs > before[1]


@pytest.mark.parametrize("way", [whole, a_part, in_place])
def test_a_report_serves_the_model_before_and_after(way) -> None:
    data = list(batches(4))
    reports = [recommend(m, data, blocks=NAMES) for m in (make_model(), way(make_model(), Backend()))]
    applied = []
    for report in reports:
        for model in (make_model(), way(make_model(), Backend())):
            report.apply(model)
            groups = report.param_groups(model)
            assert {id(p) for g in groups for p in g["params"]} == {
                id(p) for p in model.parameters() if p.requires_grad
            }
            applied.append([p.detach() for p in model.parameters()])
    assert all(same(found, applied[0]) for found in applied)


@pytest.mark.parametrize("way", WAYS)
def test_a_monitored_training_is_the_same(way) -> None:
    records = []

    def run(monitored: bool) -> object:
        backend = Backend()
        model = way(make_model(), backend)
        optimizer = make_optimizer("adamw", model)
        if not monitored:
            return train(model, optimizer, 4), backend.compiled
        with FeatureSpeedMonitor(model, optimizer, to=records.append, every=1) as monitor:
            return train(model, optimizer, 4, lambda step, x, y: monitor.step(x, y)), backend.compiled

    assert same(run(True), run(False))
    assert [record.error for record in records] == [None] * 4
    assert [block.name for block in records[0].blocks] == NAMES
