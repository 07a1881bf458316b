"""Make the figures of these pages from reports: ``python docs/make_figures.py``, most of a minute on one core.

Needs ``examples/characters.safetensors``, which ``examples/make_characters.py`` makes.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from featurespeed.contract import Report, parse_request
from featurespeed.figures import Figure, figures_of
from featurespeed.figures.drawing import image
from featurespeed.spec_files import load_spec
from featurespeed_workers.local import answer

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"


def main() -> None:
    """The README's example with its training, and a plain network beside a residual one."""
    transformer = load_spec(HERE.parent / "examples" / "transformer.yaml")
    transformer.document["measurement"] |= {"steps": 200, "every": 20}
    report = answer(parse_request(transformer.document), dataset=transformer.dataset, threads=1)
    mine = figures_of(report)
    _write("scaling", mine["scaling"])
    _write("contributions", mine["contributions"])
    _write("losses", mine["losses"])
    _write("along_training", mine["angles_along_training"])
    plain, residual = _angles({"family": "mlp"}), _angles({"family": "resnet", "shortcut": "variance_preserving"})
    _write("angles", _named(figures_of(plain, residual)["angles"], {"this": "plain", "other": "residual"}))


def _angles(family: Mapping[str, Any]) -> Report:
    """The angles of a ReLU network of 24 blocks on digits, under the recommendation's rule."""
    sizes = {"input_dim": 64, "width": 128, "depth": 24, "output_dim": 10}
    document = {
        "kind": "measure",
        "architecture": {**family, **sizes},
        "data": {"kind": "digits", "batch_size": 64},
        "loss": "cross_entropy",
        "optimizer": {"name": "sgd"},
        "measurement": {"seeds": [0, 1, 2, 3]},
    }
    return answer(parse_request(document), threads=1)


def _named(figure: Figure, names: Mapping[str, str]) -> Figure:
    """The figure with words for what is drawn as ``this: measured``."""

    def renamed(trace: Mapping[str, Any]) -> Mapping[str, Any]:
        which = str(trace.get("name", "")).partition(":")[0]
        return {**trace, "name": names[which]} if which in names else trace

    return replace(figure, data=tuple(renamed(trace) for trace in figure.data))


def _write(name: str, figure: Figure) -> None:
    file = PICTURES / f"{name}.png"
    Image.open(io.BytesIO(image([figure], "png", dpi=90))).convert("RGB").quantize(64).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
