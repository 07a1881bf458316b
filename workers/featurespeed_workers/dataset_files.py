"""Datasets on disk: a safetensors file with tensors ``inputs`` and ``targets``, one example a row. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from featurespeed.contract import Dataset, FieldError, JobRequest, Signature, SpecError

FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64"}
INTEGERS = {
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
}
CHUNK_BYTES = 64 * 2**20
"""A tensor is checked piece by piece, so that checking a large file takes little memory."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor: its whole shape, its dtype by NumPy's name, and its range."""

    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float

    @property
    def is_integer(self) -> bool:
        """Tokens or labels rather than real numbers."""
        return self.dtype in INTEGERS.values()


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset that has passed its checks."""

    inputs: TensorInfo
    targets: TensorInfo

    @property
    def examples(self) -> int:
        """Number of examples."""
        return self.inputs.shape[0]

    @property
    def max_token(self) -> int | None:
        """The largest token; ``None`` if the inputs are real numbers."""
        return int(self.inputs.maximum) if self.inputs.is_integer else None

    @property
    def max_label(self) -> int | None:
        """The largest label; ``None`` if the targets are real numbers."""
        return int(self.targets.maximum) if self.targets.is_integer else None


def _refuse(field: str, value: Any, bound: str) -> SpecError:
    return SpecError([FieldError(field=field, value=value, bound=bound)])


def check_dataset(path: Path) -> DatasetInfo:
    """Check a file on its own; raises SpecError naming tensor, value and bound."""
    if not path.is_file():
        raise _refuse("dataset", str(path), "an existing file is required")
    try:
        with safe_open(path, framework="numpy") as file:
            _check_names(sorted(file.keys()))
            inputs, targets = (_check_tensor(file, name) for name in ("inputs", "targets"))
    except (SafetensorError, OSError) as error:
        raise _refuse("dataset", path.name, f"must be a safetensors file ({error})") from None
    if inputs.shape[0] != targets.shape[0]:
        bound = f"as many rows as dataset.inputs has, {inputs.shape[0]}"
        raise _refuse("dataset.targets", targets.shape[0], bound)
    return DatasetInfo(inputs, targets)


def _check_names(names: list[str]) -> None:
    for name in ("inputs", "targets"):
        if name not in names:
            raise _refuse(f"dataset.{name}", None, f"tensor required; the file has {', '.join(names) or 'none'}")
    if extra := [name for name in names if name not in ("inputs", "targets")]:
        raise _refuse(f"dataset.{extra[0]}", extra[0], "only the tensors inputs and targets are allowed")


def _check_tensor(file: Any, name: str) -> TensorInfo:
    field = f"dataset.{name}"
    rows = file.get_slice(name)
    shape, dtype = tuple(rows.get_shape()), rows.get_dtype()
    if dtype not in FLOATS | INTEGERS:
        allowed = ", ".join([*FLOATS.values(), *INTEGERS.values()])
        raise _refuse(field, _numpy_name(dtype), f"dtype must be one of {allowed}")
    if not shape or 0 in shape:
        raise _refuse(field, list(shape), "must have at least one row, and no empty axis")
    minimum, maximum = value_range(rows, shape, field)
    if dtype in INTEGERS and minimum < 0:
        raise _refuse(field, int(minimum), "tokens and labels must be ≥ 0")
    return TensorInfo(shape, (FLOATS | INTEGERS)[dtype], minimum, maximum)


def _numpy_name(dtype: str) -> str:
    return {"BF16": "bfloat16", "BOOL": "bool", "U64": "uint64"}.get(dtype, dtype)


def value_range(rows: Any, shape: tuple[int, ...], field: str) -> tuple[float, float]:
    """Smallest and largest entry; raises SpecError at the first that is not finite."""
    minimum, maximum = np.inf, -np.inf
    for start, chunk in _chunks(rows, shape):
        if not np.isfinite(chunk).all():
            index = np.argwhere(~np.isfinite(chunk))[0]
            where = [start + int(index[0]), *(int(i) for i in index[1:])]
            raise _refuse(field, f"{chunk[tuple(index)]} at index {where}", "every entry must be finite")
        minimum, maximum = min(minimum, chunk.min()), max(maximum, chunk.max())
    return float(minimum), float(maximum)


def _chunks(rows: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, CHUNK_BYTES // (8 * int(np.prod(shape[1:], dtype=np.int64))))
    for start in range(0, shape[0], step):
        yield start, rows[start : min(start + step, shape[0])]  # unlike NumPy it refuses an end past the last row


def read_dataset(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs and targets of a file that has passed ``check_dataset``."""
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor("inputs"), file.get_tensor("targets")


def check_fits(info: DatasetInfo, request: JobRequest) -> None:
    """Check that a dataset fits the architecture, loss and batch size of a request; raises SpecError."""
    signature = request.architecture.signature
    _check_inputs(info.inputs, signature)
    if request.loss == "cross_entropy":
        _check_labels(info, signature)
    else:
        _check_values(info, signature)
    if isinstance(request.data, Dataset) and request.data.batch_size > info.examples:
        bound = f"at most {info.examples}, the number of examples"
        raise _refuse("data.batch_size", request.data.batch_size, bound)


def _check_inputs(inputs: TensorInfo, takes: Signature) -> None:
    field = "dataset.inputs"
    if takes.vocab_size is not None:
        _check_tokens(inputs, takes.inputs[0], takes.vocab_size, fixed=takes.fixed_length)
        return
    if inputs.is_integer:
        raise _refuse(field, inputs.dtype, "dtype must be float16, float32 or float64: this network takes no tokens")
    shapes = dict.fromkeys([(math.prod(takes.inputs),), takes.inputs])  # images may come flat
    if inputs.shape[1:] not in shapes:
        expected = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in shapes)
        raise _refuse(field, list(inputs.shape), f"shape must be {expected} to fit the architecture")


def _check_tokens(inputs: TensorInfo, context: int, vocab_size: int, *, fixed: bool) -> None:
    field = "dataset.inputs"
    if not inputs.is_integer:
        raise _refuse(field, inputs.dtype, "dtype must be an integer: this network takes tokens")
    if len(inputs.shape) != 2 or inputs.shape[1] > context:
        raise _refuse(field, list(inputs.shape), f"shape must be (N, T), T at most context_length {context}")
    if fixed and inputs.shape[1] != context:
        raise _refuse(field, list(inputs.shape), f"shape must be (N, {context}): this network takes no shorter ones")
    if inputs.maximum >= vocab_size:
        raise _refuse(field, int(inputs.maximum), f"tokens must be below vocab_size {vocab_size}")


def _target_axes(info: DatasetInfo, takes: Signature) -> tuple[int, ...]:
    """Axes of the labels: one a position for a language model, else one an example."""
    return info.inputs.shape[:2] if takes.per_position else info.inputs.shape[:1]


def _check_labels(info: DatasetInfo, gives: Signature) -> None:
    field, targets, outputs = "dataset.targets", info.targets, gives.outputs
    if not targets.is_integer:
        raise _refuse(field, targets.dtype, "dtype must be an integer: loss 'cross_entropy' takes labels")
    if targets.shape != (expected := _target_axes(info, gives)):
        raise _refuse(field, list(targets.shape), f"shape must be {expected} to fit inputs and architecture")
    if targets.maximum >= outputs:
        raise _refuse(field, int(targets.maximum), f"labels must be below {outputs}, the number of outputs")


def _check_values(info: DatasetInfo, gives: Signature) -> None:
    field, targets = "dataset.targets", info.targets
    if targets.is_integer:
        raise _refuse(field, targets.dtype, "dtype must be float16, float32 or float64: loss 'mse' takes real numbers")
    if targets.shape != (expected := (*_target_axes(info, gives), gives.outputs)):
        raise _refuse(field, list(targets.shape), f"shape must be {expected} to fit inputs and architecture")
