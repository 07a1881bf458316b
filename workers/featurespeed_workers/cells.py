"""A cell: one request under one seed, the unit of work of a Ray task.

Cells are deterministic in (request, seed): computing one again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from featurespeed.budget import stability_examples
from featurespeed.contract import BranchScale, JobRequest, MeasurementEvent, Report
from featurespeed.defaults import RECOMMENDATION_BATCHES
from featurespeed_workers import data, seeds
from featurespeed_workers.balance import Balance
from featurespeed_workers.branch_scale import find_branch_scale, wants_angle, with_beta, with_notes
from featurespeed_workers.comparison import default_curve
from featurespeed_workers.data import Source
from featurespeed_workers.listening import CellProgress, Listener, ignore, portion
from featurespeed_workers.loss_curves import LossRecord
from featurespeed_workers.passes import seeded
from featurespeed_workers.recommendation import seed_scaling
from featurespeed_workers.resuming import Resumed, resumed_cell
from featurespeed_workers.rules.kept import keep_scales
from featurespeed_workers.seeds import Cell, device_name
from featurespeed_workers.starts import start, unscaled
from featurespeed_workers.states import begun_state, default_state
from featurespeed_workers.trajectory import measured

__all__ = ["Cell", "CellProgress", "Listener", "assemble", "ignore", "run_cell"]


def run_cell(
    request: JobRequest,
    seed: int,
    *,
    dataset: Path | None = None,
    checkpoint: Path | None = None,
    listener: Listener = ignore,
    device: str | None = None,
) -> Cell:
    """Answer ``request`` for one seed; ``dataset`` and ``checkpoint`` are the local files of what it names.

    ``device`` is a torch device; unless given, the GPU if there is one. Raises MeasurementError if the network cannot
    be measured, SpecError if a file does not fit the request.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype: torch.dtype = getattr(torch, request.measurement.dtype)
    with seeded(seed, where):
        listener(CellProgress(fraction=0.0, message="building the network"))
        source = data.load(request, dataset=dataset, dtype=dtype, device=where)
        if request.checkpoint is not None:
            assert checkpoint is not None
            return _resumed(request, seed, source, where, listener, checkpoint)
        branch_scale = None
        if wants_angle(request):
            branch_scale = find_branch_scale(request, source, where, portion(listener, 0.0, 0.6))
            request, listener = with_beta(request, branch_scale.beta), portion(listener, 0.6, 1.0)
        cell = _computed(request, seed, source, where, listener, branch_scale)
        return cell.model_copy(update={"branch_scale": branch_scale})


def _computed(
    request: JobRequest, seed: int, source: Source, where: torch.device, listener: Listener, found: BranchScale | None
) -> Cell:
    recommends = request.kind == "recommend"
    compares = recommends and request.measurement.steps > 0
    own = portion(listener, 0.0, 0.7) if compares else listener
    before, doubts = default_state(request, seed, source, where, own) if recommends else (None, ())
    begun = start(request, seed, source, where, own)
    if before is not None and begun.scaling.feature_step is not None:
        before = replace(before, feature_step=begun.scaling.feature_step)  # both are judged by the κ that the rule took
    record = LossRecord(request.measurement.steps or 1, "training", portion(own, 0.8, 1.0))
    checkpoints, warnings = measured(request, seed, begun, own, record)
    state, kernels, others = begun_state(request, seed, begun, checkpoints, own)
    losses = None
    if compares:
        default, more = default_curve(request, seed, source, where, portion(listener, 0.7, 1.0))
        losses, warnings = record.beside(default), (*warnings, *more)
    scaling = with_notes(begun.scaling, found, request.architecture.block_names) if found else begun.scaling
    return Cell(
        seed=seed,
        device=device_name(where),
        dtype=request.measurement.dtype,
        threads=torch.get_num_threads(),
        checkpoints=checkpoints,
        scaling=seed_scaling(begun.setting, scaling) if recommends else None,
        losses=losses,
        before=before if recommends else state,
        after=state if recommends else None,
        kernels=kernels,
        warnings=(*(f"seed {seed}: {w}" for w in begun.scaling.warnings), *warnings, *doubts, *others),
    )


def _resumed(
    request: JobRequest, seed: int, source: Source, where: torch.device, listener: Listener, checkpoint: Path
) -> Cell:
    """The cell of a request that names a checkpoint: rates are balanced there, and scales stay."""
    listener(CellProgress(fraction=0.1, message="reading the checkpoint"))
    resumed = Resumed.from_file(unscaled(request, seed, where), checkpoint)
    batches = [source.batch(seed, step) for step in range(RECOMMENDATION_BATCHES)]
    listener(CellProgress(fraction=0.2, message="balancing learning rates"))
    scaling = keep_scales(
        resumed.setting,
        batches,
        present=resumed.present,
        contributions=request.contributions,
        granularity=request.scaling.granularity,
        feature_step=request.scaling.feature_step,
    )
    listener(CellProgress(fraction=0.6, message="measuring before and after"))
    balance = Balance.requested(request, resumed.setting.network)
    stable, examples = request.measures_stability, stability_examples(request)
    cell = resumed_cell(resumed, seed, batches[0], scaling, balance, stability=stable, examples=examples)
    found = cell.checkpoints[0].measurement
    angles = tuple(layer.angle for layer in found.layers)
    listener(MeasurementEvent(seed=seed, step=0, loss=found.loss, angles=angles))
    return cell


def assemble(request: JobRequest, cells: Sequence[Cell], *, wall_seconds: float) -> Report:
    """The report over all seeds; ``cells`` in the order of ``request.measurement.seeds``."""
    return seeds.assemble(
        request.kind,
        cells,
        spec_sha256=request.sha256,
        wall_seconds=wall_seconds,
    )
