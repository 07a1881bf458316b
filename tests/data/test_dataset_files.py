"""Every fault of a dataset is found and named: tensor, value, bound."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

import featurespeed_workers.dataset_files as dataset_files
from featurespeed.contract import SpecError, parse_request
from featurespeed_workers.dataset_files import check_dataset, check_fits, read_dataset

Tensors = dict[str, NDArray[Any]]
MLP = {"family": "mlp", "input_dim": 3, "width": 8, "depth": 3, "output_dim": 4}
FLATTENED = {
    "family": "graph",
    "input": {"vocab_size": 10, "length": 6},
    "layers": [
        {"layer": "embedding", "name": "tokens", "width": 2},
        {"layer": "flatten", "name": "flat"},
        {"layer": "linear", "name": "head", "width": 3},
    ],
}
LANGUAGE = {"family": "transformer", "layers": 1, "width": 8, "heads": 2, "vocab_size": 10, "context_length": 5}
IMAGE = {"height": 4, "width": 6, "channels": 2, "patch": 2}
VISION = {"family": "transformer", "layers": 1, "width": 8, "heads": 2, "image": IMAGE, "output_dim": 4}


def vectors(**changes: Any) -> Tensors:
    inputs = np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3)
    return {"inputs": inputs, "targets": np.array([0, 1, 2, 3, 0, 1]), **changes}


def tokens(**changes: Any) -> Tensors:
    inputs = np.arange(20, dtype=np.uint8).reshape(4, 5) % 10
    return {"inputs": inputs, "targets": (inputs + 1) % 10, **changes}


def refusal(tmp_path: Path, tensors: Tensors, *request: Any) -> tuple[str, Any, str]:
    """Field, value and bound of the one fault of a file, and of its fit to a request if one is given."""
    save_file(tensors, tmp_path / "set.safetensors")
    with pytest.raises(SpecError) as caught:
        examine(tmp_path / "set.safetensors", request)
    [error] = caught.value.errors
    return error.field, error.value, error.bound


def examine(path: Path, request: tuple[Any, ...]) -> None:
    info = check_dataset(path)
    if request:
        fit(info, *request)


def fit(info: Any, architecture: dict[str, Any], loss: str = "cross_entropy", batch_size: int = 2) -> None:
    data = {"kind": "dataset", "sha256": "0" * 64, "batch_size": batch_size}
    check_fits(info, parse_request({"kind": "measure", "architecture": architecture, "data": data, "loss": loss}))


def with_value(array: NDArray[Any], index: tuple[int, ...], value: float) -> NDArray[Any]:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_good_file_is_described(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "set.safetensors"
    tensors = vectors(inputs=vectors()["inputs"].astype(dtype))
    save_file(tensors, path)
    info = check_dataset(path)
    assert info.examples == 6
    assert (info.inputs.shape, info.inputs.dtype) == ((6, 3), np.dtype(dtype).name)
    assert (info.targets.shape, info.targets.dtype) == ((6,), "int64")
    assert (info.max_token, info.max_label) == (None, 3)
    inputs, targets = read_dataset(path)
    assert (inputs == tensors["inputs"]).all()
    assert (targets == tensors["targets"]).all()


@pytest.mark.parametrize(
    ("tensors", "architecture", "loss"),
    [
        (vectors(), MLP, "cross_entropy"),
        (vectors(targets=np.ones((6, 4))), MLP, "mse"),
        (tokens(), LANGUAGE, "cross_entropy"),
        ({name: t[:, :3].copy() for name, t in tokens().items()}, LANGUAGE, "cross_entropy"),
        (tokens(targets=np.array([0, 1, 2, 3])), {**LANGUAGE, "output_dim": 4}, "cross_entropy"),
        (vectors(inputs=np.ones((6, 48))), VISION, "cross_entropy"),
        (vectors(inputs=np.ones((6, 2, 4, 6))), VISION, "cross_entropy"),
    ],
)
def test_files_that_fit(tmp_path: Path, tensors: Tensors, architecture: dict[str, Any], loss: str) -> None:
    save_file(tensors, tmp_path / "set.safetensors")
    fit(check_dataset(tmp_path / "set.safetensors"), architecture, loss, batch_size=len(tensors["inputs"]))


@pytest.mark.parametrize(
    ("tensors", "field", "value", "bound"),
    [
        ({"inputs": vectors()["inputs"]}, "dataset.targets", None, "tensor required; the file has inputs"),
        ({"targets": vectors()["targets"]}, "dataset.inputs", None, "tensor required; the file has targets"),
        (vectors(weights=np.ones(2)), "dataset.weights", "weights", "only the tensors inputs and targets"),
        (vectors(inputs=np.ones((6, 3), dtype=bool)), "dataset.inputs", "bool", "dtype must be one of float16"),
        (vectors(targets=np.ones(6, dtype=np.uint64)), "dataset.targets", "uint64", "dtype must be one of"),
        (vectors(targets=np.array([0, 1])), "dataset.targets", 2, "as many rows as dataset.inputs has, 6"),
        (vectors(inputs=np.ones((0, 3))), "dataset.inputs", [0, 3], "at least one row"),
        (vectors(inputs=np.ones((6, 0))), "dataset.inputs", [6, 0], "no empty axis"),
        (vectors(inputs=np.array(1.0)), "dataset.inputs", [], "at least one row"),
        (vectors(targets=np.array([0, 1, 2, -1, 0, 0])), "dataset.targets", -1, "must be ≥ 0"),
        (
            vectors(inputs=with_value(vectors()["inputs"], (4, 1), np.nan)),
            "dataset.inputs",
            "nan at index [4, 1]",
            "every entry must be finite",
        ),
        (
            vectors(targets=with_value(np.ones((6, 4)), (2, 3), -np.inf)),
            "dataset.targets",
            "-inf at index [2, 3]",
            "every entry must be finite",
        ),
    ],
)
def test_bad_files(tmp_path: Path, tensors: Tensors, field: str, value: Any, bound: str) -> None:
    found = refusal(tmp_path, tensors)
    assert found[:2] == (field, value)
    assert bound in found[2]


@pytest.mark.parametrize(
    ("tensors", "request_", "field", "value", "bound"),
    [
        (vectors(), ({**MLP, "input_dim": 5},), "dataset.inputs", [6, 3], "(N, 5)"),
        (vectors(inputs=np.ones((6, 4, 6))), (VISION,), "dataset.inputs", [6, 4, 6], "(N, 48) or (N, 2, 4, 6)"),
        (vectors(inputs=np.ones((6, 3), dtype=np.int8)), (MLP,), "dataset.inputs", "int8", "must be float16"),
        (vectors(), ({**MLP, "output_dim": 3},), "dataset.targets", 3, "labels must be below 3"),
        (vectors(targets=np.ones(6)), (MLP,), "dataset.targets", "float64", "takes labels"),
        (vectors(), (MLP, "mse"), "dataset.targets", "int64", "'mse' takes real numbers"),
        (vectors(targets=np.ones((6, 2))), (MLP, "mse"), "dataset.targets", [6, 2], "(6, 4)"),
        (vectors(targets=np.ones((6, 1), dtype=int)), (MLP,), "dataset.targets", [6, 1], "(6,)"),
        (vectors(), (MLP, "cross_entropy", 7), "data.batch_size", 7, "at most 6"),
        (tokens(), ({**LANGUAGE, "vocab_size": 9},), "dataset.inputs", 9, "below vocab_size 9"),
        (tokens(), (FLATTENED,), "dataset.inputs", [4, 5], "(N, 6): this network takes no shorter ones"),
        (tokens(), ({**LANGUAGE, "context_length": 4},), "dataset.inputs", [4, 5], "context_length 4"),
        (tokens(inputs=np.ones((4, 5))), (LANGUAGE,), "dataset.inputs", "float64", "takes tokens"),
        (tokens(targets=np.zeros(4, dtype=int)), (LANGUAGE,), "dataset.targets", [4], "(4, 5)"),
        (tokens(targets=np.full((4, 5), 12)), (LANGUAGE,), "dataset.targets", 12, "labels must be below 10"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, tensors: Tensors, request_: tuple[Any, ...], field: str, value: Any, bound: str
) -> None:
    found = refusal(tmp_path, tensors, *request_)
    assert found[:2] == (field, value)
    assert bound in found[2]


def test_bfloat16_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    save_torch_file({"inputs": torch.ones(2, 3, dtype=torch.bfloat16), "targets": torch.zeros(2)}, path)
    with pytest.raises(SpecError, match=r"dataset\.inputs: dtype must be one of float16.*bfloat16"):
        check_dataset(path)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(SpecError, match="dataset"):
        check_dataset(path)
    with pytest.raises(SpecError, match="an existing file is required"):
        check_dataset(tmp_path / "missing")
    with pytest.raises(SpecError, match="an existing file is required"):
        check_dataset(tmp_path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    for number, save in enumerate((pickle.dump, torch.save)):
        path = tmp_path / f"{number}.safetensors"
        with path.open("wb") as file:
            save(_Trap(tmp_path / "sprung"), file)
        with pytest.raises(SpecError, match="must be a safetensors file"):
            check_dataset(path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(_Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()  # so it would have been seen


class _Trap:
    """Whoever unpickles it makes a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    save_file(vectors(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SpecError, match="must be a safetensors file"):
        check_dataset(path)


def test_files_are_checked_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_files, "CHUNK_BYTES", 48)  # two rows a piece
    bad = vectors(inputs=with_value(vectors()["inputs"], (5, 2), np.inf))
    assert refusal(tmp_path, bad)[1] == "inf at index [5, 2]"
    save_file(vectors(), tmp_path / "set.safetensors")
    info = check_dataset(tmp_path / "set.safetensors")
    assert (info.inputs.minimum, info.inputs.maximum) == (-1, 1)


def test_checking_a_dataset_loads_no_torch() -> None:
    code = "import sys, featurespeed_workers.dataset_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
