"""Batches: what the network is measured and trained on.

Every batch is drawn with NumPy, in float64, from a stream of its own that (data.seed, seed, step) alone decides: it is
the same on every device and in every precision, and no global random state is touched.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from featurespeed.contract import (
    Dataset,
    Digits,
    FieldError,
    Gaussian,
    JobRequest,
    Signature,
    SpecError,
    Sphere,
    Tokens,
)
from featurespeed_workers.dataset_files import check_dataset, check_fits, read_dataset
from featurespeed_workers.teacher import Teacher

Array = NDArray[Any]


class Arrays(Protocol):
    """Something that batches of arrays can be drawn from."""

    def draw(self, rng: Generator) -> tuple[Array, Array]:
        """One batch: inputs and targets; integers are tokens or labels."""
        ...


class Source:
    """Batches of tensors on one device: floating-point ones in ``dtype``, tokens and labels in int64."""

    def __init__(
        self, arrays: Arrays, takes: Signature, *, data_seed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._arrays = arrays
        self._data_seed = data_seed
        self._dtype = dtype
        self._device = device
        self._shape = takes.inputs

    def batch(self, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step (``seed``, ``step`` ≥ 0); the same numbers whenever it is asked.

        Inputs: (batch, input_dim), (batch, channels, height, width) of images, (batch, positions) of tokens.
        Targets: labels (batch,) or (batch, positions), or under mse (batch, output_dim).
        """
        rng = np.random.default_rng([self._data_seed, seed, step])
        inputs, targets = self._arrays.draw(rng)
        if not np.issubdtype(inputs.dtype, np.integer):
            inputs = inputs.reshape(-1, *self._shape)  # images may come flat
        return self._tensor(inputs), self._tensor(targets)

    def _tensor(self, array: Array) -> Tensor:
        if np.issubdtype(array.dtype, np.integer):
            return torch.from_numpy(array.astype(np.int64)).to(self._device)
        return torch.from_numpy(array.astype(np.float64)).to(self._dtype).to(self._device)


def load(request: JobRequest, *, dataset: Path | None, dtype: torch.dtype, device: torch.device) -> Source:
    """The source of a request's batches; ``dataset`` is the local file of data kind ``dataset``.

    Raises SpecError, naming field, value and bound, if the data do not fit the request.
    """
    data, takes = request.data, request.architecture.signature
    arrays: Arrays
    if isinstance(data, Gaussian | Sphere):
        arrays = RandomVectors(request, data)
    elif isinstance(data, Tokens):
        arrays = RandomTokens(takes, data)
    elif isinstance(data, Digits):
        arrays = _digits(request)
    else:
        arrays = _dataset(request, data, dataset)
    return Source(arrays, takes, data_seed=data.seed, dtype=dtype, device=device)


class RandomVectors:
    """Vectors x: (batch, input_dim), normal or uniform on a sphere, with synthetic targets."""

    def __init__(self, request: JobRequest, data: Gaussian | Sphere) -> None:
        self._data = data
        takes = request.architecture.signature
        self._dim = math.prod(takes.inputs)
        self._outputs = takes.outputs
        self._norm = data.input_norm if data.input_norm is not None else math.sqrt(self._dim)
        self._labels = request.loss == "cross_entropy"
        self._targets = data.targets or ("classes" if self._labels else "gaussian")
        self._teacher = Teacher(self._dim, self._outputs, seed=data.seed) if self._targets == "teacher" else None

    def draw(self, rng: Generator) -> tuple[Array, Array]:
        """Inputs (batch, input_dim); targets (batch, output_dim), or labels (batch,) under cross-entropy."""
        x = rng.standard_normal((self._data.batch_size, self._dim))
        scale = self._norm / (
            np.linalg.norm(x, axis=1, keepdims=True) if self._data.kind == "sphere" else self._dim**0.5
        )
        x = x * scale
        return x, self._draw_targets(x, rng)

    def _draw_targets(self, x: Array, rng: Generator) -> Array:
        shape = (self._data.batch_size, self._outputs)
        if self._teacher is not None:
            y = self._teacher(x / (self._norm / self._dim**0.5))  # the teacher sees coordinates of size 1
            return y.argmax(axis=1) if self._labels else y
        if self._targets == "classes":
            return rng.integers(self._outputs, size=shape[0])
        return np.ones(shape) if self._targets == "ones" else rng.standard_normal(shape)


class RandomTokens:
    """Independent tokens (batch, positions); a position's target is the next token, a classifier's a random label."""

    def __init__(self, takes: Signature, data: Tokens) -> None:
        assert takes.vocab_size is not None  # the contract pairs tokens with networks that take them
        self._shape = (data.batch_size, takes.inputs[0])
        self._vocab_size = takes.vocab_size
        self._classes = None if takes.per_position else takes.outputs
        exponent = data.exponent if data.distribution == "zipf" else 0.0
        weights = np.arange(1, self._vocab_size + 1, dtype=np.float64) ** -exponent
        self._cumulative = np.cumsum(weights / weights.sum())

    def draw(self, rng: Generator) -> tuple[Array, Array]:
        """Inputs (batch, positions); targets of the same shape, or labels (batch,)."""
        batch, positions = self._shape
        uniform = rng.random((batch, positions + 1))
        # rounding may leave the last cumulative probability just below 1
        tokens = np.searchsorted(self._cumulative, uniform, side="right").clip(max=self._vocab_size - 1)
        if self._classes is not None:
            return tokens[:, :-1], rng.integers(self._classes, size=batch)
        return tokens[:, :-1], tokens[:, 1:]


class Finite:
    """A finite set of examples; each batch is drawn from it without replacement, independently of other batches."""

    def __init__(self, inputs: Array, targets: Array, *, batch_size: int) -> None:
        self._inputs = inputs
        self._targets = targets
        self._batch_size = batch_size

    def draw(self, rng: Generator) -> tuple[Array, Array]:
        """``batch_size`` examples."""
        chosen = rng.choice(len(self._inputs), size=self._batch_size, replace=False)
        return self._inputs[chosen], self._targets[chosen]


def _digits(request: JobRequest) -> Finite:
    """scikit-learn's digits, standardised by one mean and one std over all pixels: E‖x‖² = 64."""
    from sklearn.datasets import load_digits  # here, for the import is slow

    x, labels = load_digits(return_X_y=True)
    size = request.data.batch_size
    if size > len(x):
        raise SpecError([FieldError(field="data.batch_size", value=size, bound=f"at most {len(x)}, all the digits")])
    x = (x - x.mean()) / x.std()
    targets = labels if request.loss == "cross_entropy" else np.eye(10, request.architecture.signature.outputs)[labels]
    return Finite(x, targets, batch_size=size)


def _dataset(request: JobRequest, data: Dataset, path: Path | None) -> Finite:
    if path is None:
        raise ValueError(f"data.kind 'dataset' needs a local file for {data.sha256}")
    check_fits(check_dataset(path), request)
    inputs, targets = read_dataset(path)
    return Finite(inputs, targets, batch_size=data.batch_size)
