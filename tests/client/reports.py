"""Requests and reports for tests of the client; the numbers are made up."""

import json
from typing import Any

from featurespeed.contract import (
    BlockRecommendation,
    GeometricStatistic,
    JobRequest,
    LayerMeasurement,
    Measurement,
    ParameterRecommendation,
    Provenance,
    Recommendation,
    Report,
    Statistic,
    parse_request,
)

SPEC: dict[str, Any] = {
    "kind": "recommend",
    "architecture": {"family": "mlp", "input_dim": 4, "width": 8, "depth": 3, "output_dim": 2},
    "data": {"kind": "gaussian", "batch_size": 4},
    "loss": "mse",
    "measurement": {"seeds": [0]},
}
SPEC_WITHOUT_KIND = {name: value for name, value in SPEC.items() if name != "kind"}


def request() -> JobRequest:
    return parse_request(SPEC)


def parameter(
    name: str, shape: tuple[int, ...], std: float, lr: float, block: str = "input", mean: float = 0.0
) -> ParameterRecommendation:
    return ParameterRecommendation(name=name, block=block, shape=shape, init_mean=mean, init_std=std, lr=lr)


def recommendation(*parameters: ParameterRecommendation) -> Recommendation:
    blocks = {p.block: p for p in parameters}
    return Recommendation(
        master_lr=4.0,
        master_lr_over_seeds=GeometricStatistic.of([4.0]),
        output_multiplier=1.0,
        relative_sensitivity=0.25,
        feature_step=1.0,
        warmup_fraction=0.05,
        relative_sensitivity_over_seeds=GeometricStatistic.of([0.25]),
        blocks=tuple(
            BlockRecommendation(
                index=index,
                name=block,
                init_std=p.init_std,
                multiplier=1.0,
                lr=p.lr,
                init_std_over_seeds=GeometricStatistic.of([p.init_std]),
                lr_over_seeds=GeometricStatistic.of([p.lr]),
                note="[unusual] a note" if index == 1 else None,
            )
            for index, (block, p) in enumerate(blocks.items(), start=1)
        ),
        parameters=parameters,
    )


def report(*parameters: ParameterRecommendation, kind: Any = "recommend", warnings: tuple[str, ...] = ()) -> Report:
    if not parameters:
        parameters = (parameter("0.weight", (8, 4), 0.5, 0.1), parameter("2.weight", (2, 8), 0.25, 0.2, "output"))
    one = Statistic.of([0.5, None])
    layers = tuple(
        LayerMeasurement(
            index=index,
            name=name,
            size=8,
            angle=one,
            cos=one,
            feature_rms=one,
            feature_speed=one,
            backward_rms=one,
            sensitivity=one,
            contribution=one,
            gradient_norm=one,
        )
        for index, name in enumerate(dict.fromkeys(p.block for p in parameters), start=1)
    )
    return Report(
        kind=kind,
        recommendation=recommendation(*parameters) if kind == "recommend" else None,
        measurements=(
            Measurement(
                step=0,
                method="exact",
                loss=2.0,
                loss_decay=1.0,
                formula_residual=1e-7,
                loss_over_seeds=one,
                layers=layers,
            ),
        ),
        warnings=warnings,
        provenance=Provenance(
            featurespeed="0",
            torch="0",
            python="0",
            device="cpu",
            dtype="float32",
            threads=1,
            seeds=(0,),
            spec_sha256="0" * 64,
            wall_seconds=0.1,
        ),
    )


def job_json(job_id: str = "j1", status: str = "queued", fraction: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A job as the service would send it, with a field that this version does not know."""
    return {
        "id": job_id,
        "kind": "recommend",
        "status": status,
        "progress": {"cells_done": 0, "cells_total": 1, "fraction": fraction, "message": "", "of_a_newer_version": 1},
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "attempt": 0,
        "error": None,
        "request": json.loads(request().model_dump_json()),
        "of_a_newer_version": {"a": 1},
        **changes,
    }
