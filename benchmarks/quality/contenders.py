"""Who competes, by name: each takes a cell and returns its three runs, what it cost, and what it chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.quality import others, ours, sweep
from benchmarks.quality.suite import Cell

SWEEP = "sweep"
OURS = "featurespeed"
REFINED = "featurespeed refined"
PAPER = "paper, constants 1"

EQUAL = {"input": 1.0, "hidden": 1.0, "output": 1.0}

CONTENDERS: dict[str, Callable[[Cell], dict[str, Any]]] = {
    SWEEP: sweep.sweep,
    OURS: lambda cell: ours.recommended(cell, {}),
    REFINED: lambda cell: ours.recommended(cell, {"refine": {}}),
    PAPER: lambda cell: ours.recommended(
        cell, {"relative_sensitivity": 1.0, "feature_step": 1.0, "contributions": EQUAL}
    ),
    "µP": others.mu_transfer,
    "LR finder": others.lr_finder,
    "Prodigy": others.prodigy,
}
