"""A cell: one request under one seed, the unit of work of a Ray task.

Cells are deterministic in (request, seed): computing one again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from featurespeed.contract import JobRequest, Report
from featurespeed_workers import data, seeds
from featurespeed_workers.directions import UpdateRule
from featurespeed_workers.listening import CellProgress, Listener, ignore
from featurespeed_workers.losses import loss_function
from featurespeed_workers.measurement import Setting
from featurespeed_workers.passes import Batch
from featurespeed_workers.seeds import Cell, device_name, seed_scaling
from featurespeed_workers.starts import built, explicit, scaled
from featurespeed_workers.trajectory import measured

__all__ = ["Cell", "CellProgress", "Listener", "assemble", "ignore", "run_cell"]


def run_cell(
    request: JobRequest,
    seed: int,
    *,
    dataset: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> Cell:
    """Answer ``request`` for one seed; ``dataset`` is the local file of data kind ``dataset``.

    ``device`` is a torch device; unless given, the GPU if there is one. Raises MeasurementError if the network cannot
    be measured, SpecError if the dataset does not fit the request.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype: torch.dtype = getattr(torch, request.measurement.dtype)
    listener(CellProgress(fraction=0.0, message="building the network"))
    source = data.load(request, dataset=dataset, dtype=dtype, device=where)
    network = built(request, seed, dtype, where)
    rule = UpdateRule.from_contract(request.optimizer)
    setting = Setting(network, loss_function(request.loss), lambda name: rule, method=request.measurement.method)

    def batch(step: int) -> Batch:
        return source.batch(seed, step)

    scaling = scaled(request, setting, batch, listener)
    parameters = explicit(request, network, scaling.parameters, seed)
    checkpoints, warnings = measured(request, seed, setting, replace(scaling, parameters=parameters), batch, listener)
    return Cell(
        seed=seed,
        device=device_name(where),
        dtype=request.measurement.dtype,
        threads=torch.get_num_threads(),
        checkpoints=checkpoints,
        scaling=seed_scaling(network, scaling) if request.kind == "recommend" else None,
        warnings=(*(f"seed {seed}: {w}" for w in scaling.warnings), *warnings),
    )


def assemble(request: JobRequest, cells: Sequence[Cell], *, wall_seconds: float) -> Report:
    """The report over all seeds; ``cells`` in the order of ``request.measurement.seeds``."""
    return seeds.assemble(
        request.kind,
        cells,
        feature_step=request.scaling.feature_step,
        spec_sha256=request.sha256,
        wall_seconds=wall_seconds,
    )
