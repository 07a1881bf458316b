"""Our answers: the rule with its default constants, with probes, and the paper's with all constants 1."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.quality.runs import fresh, make_optimizer, train
from benchmarks.quality.suite import TRAINING_SEEDS, Cell
from benchmarks.quality.tasks import DATASETS
from benchmarks.quality.work import counted, sweep_work
from featurespeed.contract import Report
from featurespeed.contract.validation import parse_request
from featurespeed_workers.local import answer

OTHER_SEEDS = ((3, 4, 5), (6, 7, 8))
"""Answers from other seeds, to see how much an answer depends on them."""


def ask(cell: Cell, scaling: dict[str, Any], seeds: tuple[int, ...] | None = None) -> Report:
    """The answer to the cell's question."""
    spec = cell.request.model_dump(mode="json")
    spec["scaling"] = scaling
    if seeds is not None:
        spec["measurement"]["seeds"] = list(seeds)
    return answer(parse_request(spec), dataset=DATASETS[cell.dataset].path if cell.dataset else None)


def recommended(cell: Cell, scaling: dict[str, Any]) -> dict[str, Any]:
    """Train by the answer; its cost relative to the sweep's, and the spread of its learning rates.

    ``seed_spread``: over the answer's three seeds, largest ÷ smallest learning rate of a block, the median block's and
    the worst one's. ``answer_spread``: the same over three answers from disjoint seeds.
    """
    report, work = counted(lambda: ask(cell, scaling))
    runs = []
    for seed in TRAINING_SEEDS:
        model = fresh(cell, seed)
        torch.manual_seed(seed)
        report.apply(model)
        runs.append(train(cell, model, make_optimizer(cell, report.param_groups(model)), seed))
    advice = report.recommendation
    assert advice is not None
    others = [ask(cell, scaling, seeds) for seeds in OTHER_SEEDS]
    by_answer = [[b.lr for b in r.recommendation.blocks] for r in (report, *others) if r.recommendation]
    return {
        "runs": [o.json() for o in runs],
        "cost": work / sweep_work(cell),
        "seed_spread": _spread([list(b.lr_over_seeds.values) for b in advice.blocks]),
        "answer_spread": _spread([list(rates) for rates in zip(*by_answer, strict=True)]),
        "feature_step": advice.feature_step,
        "relative_sensitivity": advice.relative_sensitivity,
        "rates": {b.name: b.lr for b in advice.blocks},
        "warnings": list(report.warnings),
    }


def _spread(rates: list[list[float]]) -> dict[str, float]:
    ratios = [max(values) / min(values) for values in rates]
    return {"median": statistics.median(ratios), "worst": max(ratios)}
