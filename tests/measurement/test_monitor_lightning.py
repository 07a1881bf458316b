"""The callback in real Lightning runs, under both of Lightning's names."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from featurespeed_workers import measure
from featurespeed_workers.losses import cross_entropy
from featurespeed_workers.monitoring.records import Record
from tests.measurement.identity import same
from tests.measurement.monitored import batches, make_model, make_optimizer

callbacks = pytest.importorskip("featurespeed_workers.monitoring.lightning", exc_type=ImportError)
FeatureSpeedCallback = callbacks.FeatureSpeedCallback

BLOCKS = ["net.0", "net.1", "net.2"]


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request) -> Any:
    return importlib.import_module(request.param)


def run(lightning: Any, module: Any, data: Any, folder: Path, **options: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options
    )  # fmt: skip
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, under torch 2.13
        trainer.fit(module, data)
    return trainer


def fit(lightning: Any, folder: Path, callbacks: list[Any], **options: Any) -> Any:
    """Train for two epochs of six batches: all that training changes, of module, optimizer and random state."""

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_model()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self(batch["x"]), batch["y"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = make_optimizer("adamw", self)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    module = Module()
    data = [{"x": x, "y": y} for x, y in batches(6)]
    trainer = run(lightning, module, DataLoader(data, batch_size=None), folder, callbacks=callbacks, **options)
    return {
        "module": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "random": torch.get_rng_state(),
        "loss": trainer.callback_metrics["loss"],
        "precision": trainer.precision,
    }


def pair(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["x"], batch["y"]


@pytest.mark.parametrize("blocks", [BLOCKS, None], ids=["named", "found"])
def test_a_run_is_recorded_and_the_same_to_the_bit(lightning, tmp_path, blocks) -> None:
    callback = FeatureSpeedCallback(to=tmp_path / "run.jsonl", every=5, blocks=blocks, batch=pair)
    assert same(fit(lightning, tmp_path, [callback]), fit(lightning, tmp_path, []))
    found = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == [0, 5, 10]
    for record in found:
        assert record["error"] is None
        assert [block["name"] for block in record["blocks"]] == BLOCKS
        assert record["blocks"][0]["learning_rates"] == [pytest.approx(0.01 / (1 + record["step"]))]
        assert record["formula_residual"] < 1e-4


def test_numbers_are_those_of_measure(lightning, tmp_path) -> None:
    """A callback that comes first measures the same states by hand."""
    expected, found = [], []

    class First(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            report = measure(
                pl_module, [pair(batch)], optimizer=trainer.optimizers, learning_rates="optimizer", blocks=BLOCKS
            )
            expected.append(report.measurements[0])

    fit(lightning, tmp_path, [First(), FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS, batch=pair)])
    assert len(found) == 12
    for record, measured in zip(found, expected, strict=True):
        assert record.loss == measured.loss
        assert [b.angle for b in record.blocks] == [layer.angle.mean for layer in measured.layers]
        assert [b.contribution for b in record.blocks] == [layer.contribution.mean for layer in measured.layers]


def test_a_step_of_several_batches_is_measured_once_and_in_the_trainers_precision(lightning, tmp_path) -> None:
    found: list[Record] = []
    types = []

    def loss(outputs, targets):
        types.append(outputs.dtype)
        return cross_entropy(outputs, targets)

    callback = FeatureSpeedCallback(to=found.append, every=1, blocks=BLOCKS, batch=pair, loss=loss)
    fit(lightning, tmp_path, [callback], accumulate_grad_batches=3, precision="bf16-mixed")
    assert [record.step for record in found] == [0, 1, 2, 3]
    assert all(record.error is None and record.formula_residual < 5e-2 for record in found)
    assert set(types) == {torch.bfloat16}


def test_a_batch_that_does_not_fit_is_told_and_misuse_raises_at_the_start(lightning, tmp_path) -> None:
    found: list[Record] = []
    fit(lightning, tmp_path, [FeatureSpeedCallback(to=found.append, every=6, blocks=BLOCKS)])  # a dict is no pair
    assert [record.step for record in found] == [0, 6]
    assert all(record.error is not None for record in found)
    with pytest.raises(ValueError, match="no submodule 'nowhere'"):
        fit(lightning, tmp_path, [FeatureSpeedCallback(to=found.append, blocks=["nowhere", "net"])])


def test_the_default_batch_is_a_pair(lightning, tmp_path) -> None:
    found: list[Record] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    [batch] = batches(1)
    run(lightning, Module(), DataLoader(TensorDataset(*batch), batch_size=8), tmp_path, callbacks=[
        FeatureSpeedCallback(to=found.append, every=2)
    ])  # fmt: skip
    assert [(record.step, record.error) for record in found] == [(0, None), (2, None), (4, None), (6, None)]
    assert [block.name for block in found[0].blocks] == ["first", "second"]
