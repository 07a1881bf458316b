"""The cells of the benchmark: a network on a task under an optimizer. Constants are fitted on one half of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.quality.tasks import DATASETS
from featurespeed.contract import JobRequest
from featurespeed.contract.validation import parse_request

STEPS = 200
RECOMMENDATION_SEEDS = (0, 1, 2)
TRAINING_SEEDS = (100, 101, 102)
"""Initializations and batches of training runs; no recommendation sees them."""

OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {"name": "sgd", "momentum": 0.9}, "adamw": {"name": "adamw"}}

DIGITS = {"kind": "digits", "batch_size": 128}
VECTOR = {"input_dim": 64, "width": 128, "output_dim": 10}
TOKENS = {"family": "transformer", "width": 64, "heads": 4, "vocab_size": 96, "context_length": 32}
PATCHES = {"height": 8, "width": 8, "channels": 1, "patch": 2}


def mlp(depth: int, **more: Any) -> dict[str, Any]:
    return {"family": "mlp", "depth": depth, **VECTOR, **more}


def resnet(depth: int, norm: str = "none", **more: Any) -> dict[str, Any]:
    return {"family": "resnet", "depth": depth, "norm": norm, **VECTOR, **more}


NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits-mlp3": ("digits", mlp(3)),
    "digits-mlp10": ("digits", mlp(10)),
    "digits-mlp20": ("digits", mlp(20)),
    "digits-resnet16": ("digits", resnet(16)),
    "digits-resnet16-norm": ("digits", resnet(16, "layernorm")),
    "digits-resnet64": ("digits", resnet(64, width=64)),
    "digits-resnet64-norm": ("digits", resnet(64, "layernorm", width=64)),
    "digits-vit": (
        "digits",
        {"family": "transformer", "layers": 2, "width": 64, "heads": 4, "image": PATCHES, "output_dim": 10},
    ),
    "characters-transformer2": ("characters", {**TOKENS, "layers": 2}),
    "characters-transformer6": ("characters", {**TOKENS, "layers": 6}),
    "teacher-mlp3": ("teacher", mlp(3)),
    "teacher-mlp10": ("teacher", mlp(10)),
    "teacher-resnet16": ("teacher", resnet(16)),
    "classes-mlp10": ("classes", mlp(10, output_dim=100)),
    "classes-resnet16-norm": ("classes", resnet(16, "layernorm", output_dim=100)),
}
"""By name: the task, and the architecture."""

QUICK = ("digits-mlp3", "digits-resnet16")


@dataclass(frozen=True)
class Cell:
    """One network on one task under one optimizer."""

    name: str
    net: str
    optimizer: str
    half: Literal["fit", "held-out"]
    steps: int = STEPS

    @property
    def spec(self) -> dict[str, Any]:
        """What a user would ask."""
        task, architecture = NETS[self.net]
        return {
            "kind": "recommend",
            "architecture": architecture,
            "data": _data(task),
            "loss": "mse" if task == "teacher" else "cross_entropy",
            "optimizer": OPTIMIZERS[self.optimizer],
            "measurement": {"seeds": list(RECOMMENDATION_SEEDS)},
        }

    @property
    def request(self) -> JobRequest:
        """The same, with all defaults."""
        return parse_request(self.spec)

    @property
    def dataset(self) -> str | None:
        """Name of the dataset file, if the task has one."""
        task = NETS[self.net][0]
        return task if task in DATASETS else None


def _data(task: str) -> dict[str, Any]:
    if task == "digits":
        return DIGITS
    if task == "teacher":
        return {"kind": "gaussian", "batch_size": 128, "targets": "teacher"}
    return {"kind": "dataset", "sha256": DATASETS[task].sha256, "batch_size": 16 if task == "characters" else 128}


def cells() -> Iterator[Cell]:
    """All cells. Of a network's two cells one is fitted and one held out, in turn SGD and AdamW."""
    for i, net in enumerate(NETS):
        for j, optimizer in enumerate(OPTIMIZERS):
            yield Cell(f"{net}-{optimizer}", net, optimizer, "fit" if (i + j) % 2 == 0 else "held-out")
