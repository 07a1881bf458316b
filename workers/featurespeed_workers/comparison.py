"""What the recommendation is compared with: a run under PyTorch's defaults."""

from __future__ import annotations

import torch

from featurespeed.contract import JobRequest
from featurespeed.contract.evidence import Curve
from featurespeed_workers.data import Source
from featurespeed_workers.errors import MeasurementError
from featurespeed_workers.listening import Listener
from featurespeed_workers.loss_curves import LossRecord
from featurespeed_workers.starts import default_start
from featurespeed_workers.training import Run, Schedule, train


def default_curve(
    request: JobRequest, seed: int, source: Source, device: torch.device, listener: Listener
) -> tuple[Curve, tuple[str, ...]]:
    """The losses of ``request``'s training under PyTorch's initialization and learning rate; a warning if they diverge.

    Batches, optimizer, frozen blocks and schedule are the request's.
    """
    begun = default_start(request, seed, source, device)
    steps, scaled = request.measurement.steps, begun.scaling
    run = Run(request.optimizer, scaled.rates, scaled.master_lr, Schedule(steps), every=None)
    record = LossRecord(steps, "training under PyTorch's defaults", listener)
    try:
        for _ in train(begun.setting, scaled.parameters, begun.batch, run, record):
            pass
    except MeasurementError as error:
        return record.curve(), (f"seed {seed}: under PyTorch's defaults {error.detail}",)
    return record.curve(), ()
