"""The two tasks that need a dataset file: characters of Python's standard library, and noisy classes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from examples.make_characters import source_text, tokens_of
from numpy.typing import NDArray
from safetensors.numpy import save

CACHE = Path(__file__).parents[2] / "demo-output" / "quality"
PIECES, CONTEXT = 16_384, 32
EXAMPLES, CLASSES, DIM = 16_384, 100, 64
LABEL_NOISE = 0.2
"""Part of the labels that is drawn anew: the loss has a floor well above 0."""


@dataclass(frozen=True)
class DatasetFile:
    """A safetensors file made on first use."""

    name: str
    make: Callable[[], dict[str, NDArray[Any]]]

    @functools.cached_property
    def path(self) -> Path:
        """Where the file is; makes it if need be."""
        path = CACHE / f"{self.name}.safetensors"
        content = save(self.make())
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{hashlib.sha256(content).hexdigest()[:8]}")
            temporary.write_bytes(content)
            temporary.replace(path)
        return path

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def characters() -> dict[str, NDArray[Any]]:
    """Pieces of 32 characters of the standard library's source, and the character that follows each."""
    tokens = tokens_of(source_text(PIECES * CONTEXT + 1))
    return {
        "inputs": tokens[:-1].reshape(PIECES, CONTEXT).copy(),
        "targets": tokens[1:].reshape(PIECES, CONTEXT).copy(),
    }


def classes() -> dict[str, NDArray[Any]]:
    """A hundred Gaussian clouds whose centres are as far apart as they are wide; a fifth of the labels are random."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, DIM)) * 0.5**0.5
    labels = rng.integers(CLASSES, size=EXAMPLES)
    inputs = centres[labels] + rng.standard_normal((EXAMPLES, DIM)) * 0.5**0.5
    wrong = rng.random(EXAMPLES) < LABEL_NOISE
    labels[wrong] = rng.integers(CLASSES, size=int(wrong.sum()))
    return {"inputs": inputs.astype(np.float32), "targets": labels.astype(np.int64)}


DATASETS = {"characters": DatasetFile("characters", characters), "classes": DatasetFile("classes", classes)}
