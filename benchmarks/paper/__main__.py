"""``python -m benchmarks.paper``: measure, draw, and write the numbers beside the figures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.curves import Figure
from benchmarks.paper.drawing import draw
from benchmarks.paper.figures import figure_1a, figure_1b, figure_1c, figure_2a, figure_2b
from benchmarks.paper.summary import provenance, readme

SWEEPS = (figure_1a, figure_1b, figure_1c, figure_2a, figure_2b)
HERE = Path(__file__).parents[2] / "docs" / "paper"


def main() -> None:
    """Run all five sweeps."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the figures (default: docs/paper)")
    parser.add_argument("--seeds", type=int, default=5, help="draws of weights and input for Fig. 1 (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # on one input a layer is a matrix times a vector: more threads only wait for memory
    options.out.mkdir(parents=True, exist_ok=True)
    began, figures = time.perf_counter(), []
    for sweep in SWEEPS:
        print(sweep.__name__.replace("_", " "), file=sys.stderr, flush=True)
        # sensitivities scatter more than angles, and their networks are cheaper
        figures.append(sweep(options.seeds if sweep.__name__.startswith("figure_1") else 4 * options.seeds))
    about = provenance(time.perf_counter() - began, options.seeds)
    for figure in figures:
        draw(figure, options.out / f"{figure.name}.png")
        (options.out / f"{figure.name}.json").write_text(json.dumps(_numbers(figure, about), ensure_ascii=False) + "\n")
        print(options.out / f"{figure.name}.png")
    (options.out / "README.md").write_text(readme(figures, about))
    print(options.out / "README.md")


def _numbers(figure: Figure, about: dict[str, Any]) -> dict[str, Any]:
    curves = [
        {
            "label": c.label,
            "x": c.x,
            "mean": _rounded(c.mean),
            "median": _rounded(c.median),
            "values": _rounded(c.values),
            "theory": _rounded(c.theory),
        }
        for c in figure.curves
    ]
    return {"figure": figure.name, "title": figure.title, "x": figure.x, "y": figure.y} | about | {"curves": curves}


def _rounded(value: Any) -> Any:
    return [_rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.6g}")


if __name__ == "__main__":
    main()
