"""The monitor in a plain loop: numbers are those of ``measure`` and of the step itself, and training is unchanged."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from featurespeed_workers import FeatureSpeedMonitor, measure
from featurespeed_workers.losses import cross_entropy
from featurespeed_workers.monitoring.records import Record
from tests.measurement.identity import same
from tests.measurement.monitored import batches, make_model, make_optimizer, state, train

ROOT = Path(__file__).parent.parent.parent


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == "featurespeed_workers.monitoring.monitor"]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_training_is_the_same_to_the_bit(tmp_path, name: str, method: str) -> None:
    def run(monitored: bool) -> object:
        model = make_model()
        optimizer = make_optimizer(name, model)
        if not monitored:
            return train(model, optimizer, 12)
        with FeatureSpeedMonitor(model, optimizer, to=tmp_path / "run.jsonl", every=3, method=method) as monitor:
            return train(model, optimizer, 12, lambda step, x, y: monitor.step(x, y))

    assert same(run(True), run(False))
    found = lines(tmp_path / "run.jsonl")
    assert [record["step"] for record in found] == [0, 3, 6, 9]
    assert all(record["error"] is None and record["method"] == method for record in found)


def test_numbers_are_those_of_measure_at_the_same_state() -> None:
    model = make_model()
    optimizer = make_optimizer("adamw", model)
    monitor = FeatureSpeedMonitor(model, optimizer, to=lambda record: None, every=4)

    def watch(step, x, y) -> None:
        record = monitor.step(x, y)
        assert (record is None) == (step % 4 != 0)
        if record is None:
            return
        report = measure(model, [(x, y)], optimizer=optimizer, learning_rates="optimizer")
        [measured] = report.measurements
        assert (record.loss, record.loss_decay) == (measured.loss, measured.loss_decay)
        assert (record.formula_residual, record.method) == (measured.formula_residual, measured.method)
        for block, layer in zip(record.blocks, measured.layers, strict=True):
            assert block.name == layer.name
            for quantity in ("angle", "feature_rms", "feature_speed", "backward_rms", "sensitivity", "contribution"):
                assert getattr(block, quantity) == getattr(layer, quantity).mean
            assert block.gradient_norm == layer.gradient_norm.mean
            assert block.learning_rates == (optimizer.param_groups[0]["lr"],)
        assert set(record.verdicts) == {"SP", "FL", "LD", "BC", "FS"}
        for property, verdict in record.verdicts.items():
            assert verdict == getattr(report.properties.before, property)
            assert verdict.reason or verdict.holds

    train(model, optimizer, 9, watch)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_record_is_about_the_step_that_follows(name: str) -> None:
    """Against the step itself, in float64: contributions are −⟨∇_l, Δw_l⟩, and the loss falls by their sum."""
    model = make_model().double()
    model[1][0].p = 0.0  # else the monitor draws another mask than the step
    optimizer = make_optimizer(name, model)
    monitor = FeatureSpeedMonitor(model, optimizer, to=lambda record: None, every=1)
    for x, y in batches(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.double()), y)
        loss.backward()
        record = monitor.step(x.double(), y)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
        decay = {
            n: -float((p.grad * (p.detach() - before[n])).sum()) for n, p in model.named_parameters() if p.requires_grad
        }
        assert record.loss == pytest.approx(loss.item(), rel=1e-12)
        assert record.loss_decay == pytest.approx(sum(decay.values()), rel=1e-9)
        assert record.formula_residual < 1e-12
        for i, block in enumerate(record.blocks):
            mine = sum(value for name, value in decay.items() if name.startswith(f"{i}."))
            assert block.contribution == pytest.approx(mine, rel=1e-9)


def test_rates_of_several_groups_and_optimizers() -> None:
    model = make_model()
    model[2][1].bias.requires_grad_(True)
    matrices = [model[1][2].weight]
    rest = [p for p in model.parameters() if p is not matrices[0]]
    optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.001)]
    found: list[Record] = []
    monitor = FeatureSpeedMonitor(model, optimizers, to=[found.append])
    monitor.step(*next(batches(1)))
    assert [block.learning_rates for block in found[0].blocks] == [(0.001,), (0.001, 0.02), (0.001,)]
    assert found[0].scalars()["learning_rate/1"] == 0.02


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (5, [0, 5, 10, 15]),
        ((1, 2, 4, 8, 16, 32), [1, 2, 4, 8, 16]),
        (range(3, 20, 7), [3, 10, 17]),
        (lambda step: step > 16, [17, 18, 19]),
    ],
)
def test_which_steps(every, expected) -> None:
    model = make_model()
    found: list[Record] = []
    monitor = FeatureSpeedMonitor(model, make_optimizer("sgd", model), to=found.append, every=every)
    for x, y in batches(20):
        monitor.step(x, y)
    assert [record.step for record in found] == expected


def test_a_resumed_run_appends(tmp_path) -> None:
    model = make_model()
    optimizer = make_optimizer("sgd", model)
    for first in (0, 10):
        with FeatureSpeedMonitor(model, optimizer, to=str(tmp_path / "run.jsonl"), every=5) as monitor:
            monitor.step(*next(batches(1)), step=first)
            for x, y in batches(9):
                monitor.step(x, y)
    assert [record["step"] for record in lines(tmp_path / "run.jsonl")] == [0, 5, 10, 15]


def test_what_cannot_be_measured_is_told_and_training_goes_on(tmp_path, caplog) -> None:
    """Weights that overflow, a batch of the wrong shape, a loss of the user's that raises; in between all is well."""
    model = make_model()
    optimizer = make_optimizer("sgd", model)
    x, y = next(batches(1))

    def loss(outputs, targets):
        if targets.sum() == 0:
            raise ZeroDivisionError("no targets")
        return cross_entropy(outputs, targets)

    before = state(model, optimizer)
    with FeatureSpeedMonitor(model, optimizer, to=tmp_path / "run.jsonl", every=1, loss=loss) as monitor:
        assert monitor.step(x * math.inf, y).error.type == "not-finite"
        assert monitor.step(x * math.inf, y).error.type == "not-finite"
        assert monitor.step(x[:, :3], y).error.type == "RuntimeError"
        assert monitor.step(x, torch.zeros_like(y)).error.detail == "no targets"
        assert monitor.step(x, y).error is None
    assert same(state(model, optimizer), before)
    found = lines(tmp_path / "run.jsonl")
    assert [record["error"] and record["error"]["type"] for record in found] == [
        "not-finite", "not-finite", "RuntimeError", "ZeroDivisionError", None
    ]  # fmt: skip
    assert "features of block '0' are not finite" in found[0]["error"]["detail"]
    assert found[0]["loss"] is None
    assert [r.args[0] for r in told(caplog)] == [0, 2, 3]  # the same reason is told once


def test_a_target_that_fails_does_not_end_training(caplog) -> None:
    def full(record: Record) -> None:
        raise OSError("no space left")

    model = make_model()
    found: list[Record] = []
    monitor = FeatureSpeedMonitor(model, make_optimizer("sgd", model), to=[full, found.append], every=1)
    for x, y in batches(3):
        monitor.step(x, y)
    assert len(found) == 3
    assert [r.levelno for r in told(caplog)] == [logging.WARNING]  # told once
    assert "no space left" in caplog.text


class Undecided(nn.Sequential):
    """Which way it goes depends on the numbers: it cannot be traced."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_blocks_that_cannot_be_found_are_told_and_named_ones_are_measured() -> None:
    model = Undecided(nn.Linear(8, 16), nn.Linear(16, 4))
    optimizer = make_optimizer("sgd", model)
    for blocks in (None, ["0", "1"]):
        found: list[Record] = []
        monitor = FeatureSpeedMonitor(model, optimizer, to=found.append, every=1, blocks=blocks)
        for x, y in batches(2):
            monitor.step(x, y)
        assert ["cannot be traced" in (record.error.detail if record.error else "") for record in found] == [
            blocks is None
        ] * 2


def test_interrupted_within_a_measurement_all_is_as_it_was(tmp_path) -> None:
    model = make_model()
    optimizer = make_optimizer("adamw", model)
    train(model, optimizer, 3)
    monitor = FeatureSpeedMonitor(model, optimizer, to=tmp_path / "run.jsonl", every=1)
    x, y = next(batches(1))
    monitor.step(x, y)

    def interrupt(outputs, targets):
        raise KeyboardInterrupt

    before = state(model, optimizer)
    monitor._loss = interrupt
    with pytest.raises(KeyboardInterrupt):
        monitor.step(x, y)
    monitor.close()
    assert same(state(model, optimizer), before)
    assert len(lines(tmp_path / "run.jsonl")) == 1


TRAINING = """
import sys
from featurespeed_workers import FeatureSpeedMonitor
from tests.measurement.monitored import batches, make_model, make_optimizer
model = make_model()
monitor = FeatureSpeedMonitor(model, make_optimizer("sgd", model), to=sys.argv[1], every=1)
for x, y in batches(10**6):
    monitor.step(x, y)
    print(flush=True)
"""


def test_lines_survive_kill_9(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    told = 0
    for records in (1, 3, 6):
        with subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            told += len(list(islice(process.stdout, records)))
            os.kill(process.pid, signal.SIGKILL)
        assert path.read_bytes().endswith(b"\n")
        assert len(lines(path)) >= told


def test_an_unfinished_line_is_cut_off_and_a_foreign_file_is_left_alone(tmp_path) -> None:
    model = make_model()
    optimizer = make_optimizer("sgd", model)
    path = tmp_path / "run.jsonl"
    path.write_text('{"step":0}\n{"step":1,"sec' + "o" * 100_000)
    with FeatureSpeedMonitor(model, optimizer, to=path, every=1) as monitor:
        monitor.step(*next(batches(1)), step=1)
    assert [record["step"] for record in lines(path)] == [0, 1]
    path.write_text('{"step":0}')  # whole, but for its end
    FeatureSpeedMonitor(model, optimizer, to=path).close()
    assert path.read_text() == '{"step":0}\n'
    path.write_text("# Notes\nof mine")
    with pytest.raises(ValueError, match="ends within a line that is no record, b'of mine'"):
        FeatureSpeedMonitor(model, optimizer, to=[tmp_path / "other.jsonl", path])  # which is closed again
    assert path.read_text() == "# Notes\nof mine"


def test_tensorboard_reads_what_was_measured(tmp_path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed (extra dev)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make_model()
    found: list[Record] = []
    with tensorboard.SummaryWriter(tmp_path) as writer:
        monitor = FeatureSpeedMonitor(model, make_optimizer("sgd", model), to=[writer, found.append], every=2)
        for x, y in batches(4):
            monitor.step(x, y)
        monitor.step(x * math.nan, y)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(found) == 3
    for name in ("loss", "angle/1", "feature_speed/2", "contribution/0", "learning_rate/0", "verdict/SP"):
        read = events.Scalars(f"featurespeed/{name}")
        assert [(e.step, e.value) for e in read] == [
            (record.step, pytest.approx(record.scalars()[name])) for record in found[:2]
        ]
    assert events.Tensors("featurespeed/error/text_summary")[0].step == 4


class Wrapped(nn.Module):
    """A model that takes keyword arguments and computes its own loss, as those of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, *, values, labels=None, scale=1.0):
        logits = self.second(torch.relu(self.first(values * scale)))
        return {"logits": logits, "loss": None if labels is None else cross_entropy(logits, labels)}


def test_keyword_arguments_and_the_models_own_loss() -> None:
    from featurespeed_workers.losses import own_loss

    torch.manual_seed(0)
    model = Wrapped()
    optimizer = make_optimizer("sgd", model)
    x, y = next(batches(1))
    found = []
    own, given = (
        FeatureSpeedMonitor(model, optimizer, to=found.append, loss=loss)
        for loss in (own_loss, lambda outputs, labels: cross_entropy(outputs["logits"], labels))
    )
    own.step({"values": x, "labels": y, "scale": 2.0})
    given.step({"values": x, "scale": 2.0}, y)
    own.step({"values": x}, step=100)
    assert found[0].model_copy(update={"seconds": 0}) == found[1].model_copy(update={"seconds": 0})
    assert found[0].error is None
    assert found[2].error.detail == "loss: the model returned none; it needs labels among its inputs"


@pytest.mark.parametrize("case", ["same", "synchronized", "sharded"])
def test_two_processes_never_wait_for_a_measurement(tmp_path, case: str) -> None:
    """Rank 0 measures alone under DistributedDataParallel; what would wait for rank 1 is refused."""
    command = [sys.executable, "-m", "tests.measurement.monitored_processes", case, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT, text=True, stderr=subprocess.PIPE) for rank in (0, 1)]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every: must be at least 1, got 0"),
        ({"every": 2.5}, "every: must be a whole number, a collection of them or a function, got 2.5"),
        ({"loss": "hinge"}, "loss: 'hinge' is not one of mse, cross_entropy"),
        ({"method": "guess"}, "method: 'guess' is not one of exact, double_backward, central_difference, fin"),
        ({"to": 7}, "to: 7 is neither a path, nor a callable, nor has it add_scalar"),
        ({"blocks": ["nowhere", "2"]}, "no submodule 'nowhere'"),
        ({"optimizer": torch.optim.Adagrad([torch.ones(1)])}, "Adagrad is not one of SGD"),
        ({"model": nn.DataParallel(make_model())}, "give the module within the DataParallel"),
    ],
)
def test_misuse_is_named_before_training(arguments, message) -> None:
    model = make_model()
    given = {"model": model, "optimizer": make_optimizer("sgd", model), "to": print, **arguments}
    with pytest.raises(ValueError, match=message):
        FeatureSpeedMonitor(**given)
