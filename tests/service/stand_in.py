"""An engine for tests of the service: quick cells with known numbers, that can also be slow, deaf, wrong or deadly.

It hands requests of kind ``recommend`` to the real engine, cell by cell. Of the others ``data.seed`` chooses what
happens; ``measurement.steps`` is how long a cell takes, in units of 20 ms.
Each computed cell leaves a line in the file $STAND_IN_LOG, so that a test can count them; each that starts leaves one
in $STAND_IN_PLACES, if that is set, with where it does.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import ray
import torch

from featurespeed.contract import FieldError, Measurement, MeasurementEvent, Provenance, Report, SpecError, Statistic
from featurespeed_workers import cells, stages
from featurespeed_workers.errors import MeasurementError

UNMEASURABLE, CRASH_ONCE, CRASH_ALWAYS, BROKEN, DEAF, UNFIT, MATMUL, MEET = range(1001, 1009)


def value_of(request, seed: int) -> float:
    """A number that depends on request and seed alone."""
    digest = hashlib.sha256(f"{request.sha256} {seed}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def next_cells(request, done):
    if request.kind == "recommend":
        return stages.next_cells(request, done)
    return [f"seed {seed}" for seed in request.measurement.seeds if f"seed {seed}" not in done]


def inputs_of(request, key):
    return stages.inputs_of(request, key) if request.kind == "recommend" else ()


def run_cell(request, key, inputs, *, dataset=None, listener=None, device=None) -> str:
    if "STAND_IN_PLACES" in os.environ:
        _note_place(request, key, device)
    if request.kind == "recommend":
        found = stages.run_cell(request, key, inputs, dataset=dataset, listener=listener, device=device)
    else:
        found = str(_run(request, int(key.removeprefix("seed ")), listener))
    _note(f"{request.sha256} {key}")
    return found


def _run(request, seed, listener) -> float:
    _misbehave(request, seed)
    steps = request.measurement.steps
    value = value_of(request, seed)
    listener(MeasurementEvent(seed=seed, step=0, loss=value, angles=(value, None)))
    for step in range(steps):
        listener(cells.CellProgress(fraction=step / steps, message=f"step {step}"))
        time.sleep(0.02)
    return value


def assemble(request, done, *, wall_seconds: float) -> Report:
    if request.kind == "recommend":
        return stages.assemble(request, done, wall_seconds=wall_seconds)
    values = [float(done[f"seed {seed}"]) for seed in request.measurement.seeds]
    measurement = Measurement(
        step=0,
        loss=sum(values) / len(values),
        loss_decay=1.0,
        formula_residual=0.0,
        method="exact",
        loss_over_seeds=Statistic.of(values),
        layers=(),
    )
    provenance = Provenance(
        featurespeed="0", torch="none", python="3", device="cpu", dtype="float32", threads=1,
        seeds=request.measurement.seeds, spec_sha256=request.sha256, wall_seconds=wall_seconds,
    )  # fmt: skip
    return Report(kind=request.kind, measurements=(measurement,), provenance=provenance)


def _misbehave(request, seed: int) -> None:
    what = request.data.seed
    if what == UNMEASURABLE and seed == 1:
        raise MeasurementError("zero-gradient", "the gradient of block hidden_2 is zero")
    if what == UNFIT:
        raise SpecError([FieldError(field="dataset.inputs", value=[1], bound="shape must be (N, 2)")])
    if what == CRASH_ALWAYS or (what == CRASH_ONCE and _first_time(request, seed)):
        os._exit(7)
    if what == BROKEN:
        raise RuntimeError("a secret of the implementation")
    if what == DEAF:
        time.sleep(60)
    if what == MATMUL:
        Path(f"{os.environ['STAND_IN_LOG']}.pid").write_text(f"{os.getpid()}")
        matrix = torch.ones(6000, 6000)
        for _ in range(20):
            matrix @ matrix
    if what == MEET:
        _meet(request)


def _first_time(request, seed: int) -> bool:
    marker = Path(f"{os.environ['STAND_IN_LOG']}.{request.sha256[:12]}.{seed}")
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _note_place(request, key, device) -> None:
    context = ray.get_runtime_context()
    gpus = context.get_assigned_resources().get("GPU", 0)
    which = ",".join(context.get_accelerator_ids().get("GPU", [])) or "-"
    with Path(os.environ["STAND_IN_PLACES"]).open("a") as file:
        file.write(f"{request.sha256} {context.get_node_id()} {device} {gpus} {which} {key}\n")


def _meet(request) -> None:
    """Wait until all cells of the job have started: they have to run at once."""
    end = time.monotonic() + 60
    while len(_started(request)) < len(request.measurement.seeds):
        if time.monotonic() > end:
            raise RuntimeError("the cells do not run at once")
        time.sleep(0.02)


def _started(request) -> set[str]:
    lines = Path(os.environ["STAND_IN_PLACES"]).read_text().splitlines()
    return {line for line in lines if line.startswith(request.sha256)}


def _note(line: str) -> None:
    with Path(os.environ["STAND_IN_LOG"]).open("a") as file:
        file.write(line + "\n")
