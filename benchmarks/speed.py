"""Speed of the measurement, as ratios to a plain training step in the same process (``make bench``).

Times are CPU times with one torch thread: on a machine that others use too, they repeat where wall times do not.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featurespeed.contract import parse_request
from featurespeed_workers import FeatureSpeedMonitor
from featurespeed_workers.architectures import build
from featurespeed_workers.data import load
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.losses import loss_function
from featurespeed_workers.measurement import Method, Setting, measure_state

NETS: dict[str, dict[str, Any]] = {
    "ResNet 24 × 512, batch 256": {
        "architecture": {"family": "resnet", "input_dim": 512, "width": 512, "depth": 24, "output_dim": 10},
        "data": {"kind": "gaussian", "batch_size": 256},
    },
    "transformer 6 × 192, T = 64, batch 16": {
        "architecture": {
            "family": "transformer", "layers": 6, "width": 192, "heads": 6, "vocab_size": 256, "context_length": 64
        },
        "data": {"kind": "tokens", "batch_size": 16},
    },
    "MLP 12 × 512, batch 256": {
        "architecture": {"family": "mlp", "input_dim": 512, "width": 512, "depth": 12, "output_dim": 10},
        "data": {"kind": "gaussian", "batch_size": 256},
    },
}  # fmt: skip
GPT2 = {
    "GPT-2 small (transformers), T = 128, batch 2": {
        "architecture": {
            "family": "huggingface", "model_type": "gpt2", "context_length": 128,
            "config": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257,
                       "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        },
        "data": {"kind": "tokens", "batch_size": 2},
    },
}  # fmt: skip
"""A model of the size that people train; for its speed alone, as it takes seconds a step."""


@dataclass(frozen=True)
class Workload:
    """A network ready to be trained for a step, or measured."""

    step: Callable[[], None]
    measure: Callable[[Method], None]


def workload(spec: dict[str, Any], optimizer: str = "adamw", device: str = "cpu", dtype: str = "float32") -> Workload:
    """The plain step is zero_grad, forward and backward (no optimizer step), as a user writes it."""
    optimizer_spec = {"name": optimizer}
    request = parse_request({"kind": "measure", "loss": "cross_entropy", "optimizer": optimizer_spec, **spec})
    where, precision = torch.device(device), getattr(torch, dtype)
    network = build(request.architecture, seed=0)
    module = network.module.to(device=where, dtype=precision)
    batch: tuple[Tensor, Tensor] = load(request, dataset=None, dtype=precision, device=where).batch(0, 0)
    loss, rule = loss_function("cross_entropy"), UpdateRule.from_contract(request.optimizer)
    parameters: dict[str, Tensor] = dict(module.named_parameters())

    def synchronize() -> None:
        if where.type == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        module.zero_grad()
        torch.autograd.backward(loss(module(batch[0]), batch[1]))
        synchronize()

    def measure(method: Method) -> None:
        setting = Setting(network, loss, lambda name: rule, method=method)
        measure_state(setting, parameters, batch, "balanced")
        synchronize()

    return Workload(step, measure)


def medians(actions: list[Callable[[], None]], rounds: int) -> list[float]:
    """Median CPU seconds of each action; the actions take turns, so that a busy machine slows all of them alike."""
    for action in actions:
        action()
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, own in zip(actions, times, strict=True):
            began = time.process_time()
            action()
            own.append(time.process_time() - began)
    return [statistics.median(own) for own in times]


def speed_ratios(optimizer: str, rounds: int = 9) -> Iterator[tuple[str, float, float, float]]:
    """Per net: its name, milliseconds of a plain step, and exact and finite-difference measurement ÷ that step."""
    for name, spec in {**NETS, **GPT2}.items():
        work = workload(spec, optimizer)
        actions = [work.step, partial(work.measure, "exact"), partial(work.measure, "finite_difference")]
        step, exact, difference = medians(actions, rounds)
        yield name, 1e3 * step, exact / step, difference / step


def monitor_ratios(rounds: int = 9) -> Iterator[tuple[str, float, float]]:
    """Per net: its name, milliseconds of a training step with AdamW, and what a monitored step costs more ÷ that.

    The step is zero_grad, forward, backward and the optimizer's own, whose moments are there; the record is written.
    """
    for name, spec in NETS.items():
        with tempfile.NamedTemporaryFile() as file, monitored(spec, file.name) as actions:
            step, measured = medians(list(actions), rounds)
        yield name, 1e3 * step, measured / step


@contextmanager
def monitored(spec: dict[str, Any], to: str) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """A training step, and the measurement of one that is written to a file."""
    request = parse_request({"kind": "measure", "loss": "cross_entropy", "optimizer": {"name": "adamw"}, **spec})
    network, loss = build(request.architecture, seed=0), loss_function("cross_entropy")
    inputs, targets = load(request, dataset=None, dtype=torch.float32, device=torch.device("cpu")).batch(0, 0)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss(network.module(inputs), targets))
        optimizer.step()

    with FeatureSpeedMonitor(network, optimizer, to=to, every=1) as monitor:

        def measure() -> None:
            record = monitor.step(inputs, targets)
            assert record is not None
            assert record.error is None

        yield step, measure


def cost_per_layer(depths: Sequence[int] = (16, 32, 64, 128, 256, 512), rounds: int = 5) -> dict[int, float]:
    """CPU milliseconds of an exact measurement ÷ depth, for ResNets of width 128 at batch 128."""
    costs = {}
    for depth in depths:
        spec = {
            "architecture": {"family": "resnet", "input_dim": 128, "width": 128, "depth": depth, "output_dim": 10},
            "data": {"kind": "gaussian", "batch_size": 128},
        }
        [seconds] = medians([partial(workload(spec, "sgd").measure, "exact")], rounds)
        costs[depth] = 1e3 * seconds / depth
    return costs
