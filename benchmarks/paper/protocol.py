"""The paper's numerical protocol (Sec 5.1 and 5.2) as requests to the engine.

One input on the sphere of R^10, one output, target 1, loss ½(f-y)²; the first and the last matrix do not train, the
others have balanced rates (Eq. 8). Seeds draw the weights and the input.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Literal

from featurespeed.contract import JobRequest, Measurement
from featurespeed_workers.local import answer

INPUTS = 10
Family = Literal["mlp", "resnet"]


def request(
    family: Family, depth: int, width: int, seeds: int, *, beta: float = 1.0, output_std: float, input_norm: float
) -> JobRequest:
    """A measurement at initialization; σ_1 gives f_1 rms 1, hidden std is √(2/m)."""
    architecture: dict[str, Any] = {"family": family, "input_dim": INPUTS, "width": width, "depth": depth}
    architecture |= {"output_dim": 1, "activation": "relu"}
    if family == "resnet":
        architecture["branch_scale"] = beta
    return JobRequest.model_validate(
        {
            "kind": "measure",
            "architecture": architecture,
            "data": {"kind": "sphere", "batch_size": 1, "targets": "ones", "input_norm": input_norm},
            "loss": "mse",
            "optimizer": {"name": "sgd"},
            "frozen": ("input", "output"),
            "learning_rates": "balanced",
            "initialization": {"input": 1 / input_norm, "hidden": math.sqrt(2 / width), "output": output_std},
            "measurement": {"seeds": tuple(range(seeds))},
        }
    )


def measure(asked: JobRequest, *, about: str) -> Measurement:
    """The engine's measurement; one line of progress on stderr. A warning of the engine ends the run."""
    began = time.perf_counter()
    report = answer(asked, device="cpu")
    if report.warnings:
        raise RuntimeError(f"{about}: {'; '.join(report.warnings)}")
    print(f"  {about}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return report.measurements[0]
